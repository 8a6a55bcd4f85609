"""A site as manifests of Azure IoT Edge: what is in them, what a changed line changes, what is refused."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT4

import needs
from edge_agent import joined, merged
from needs import ROOT
from skerry.broker_entry import MADE
from skerry.cli import main
from skerry.deploy.acl import ACL_FILE
from skerry.deploy.deployment import Deployment, Finding, deployment
from skerry.deploy.images import Images
from skerry.deploy.iotedge import architectures, render
from skerry.deploy.iotedge_findings import TWIN_BYTES, findings, twin_bytes
from skerry.deploy.iotedge_options import LONGEST_TEXT
from skerry.deploy.site import load_site
from skerry.inference.settings import InferenceSettings
from skerry.messages import LANES
from skerry.settings import parse_json
from skerry.uplink.judgement import Document

SCHEMAS = ROOT.parent / "shared" / "schemas" / "azure"
PACKAGE = ROOT / "models" / "parts"
SITE = f"""
site: test
cameras:
  - {{name: belt, source: {{kind: synthetic}}, fps: 5}}
models:
  - {{package: {PACKAGE}}}
rules:
  - {{name: counted, kind: line, camera: belt, line: [[0.5, 0], [0.5, 1]]}}
buffer: {{bytes: 67108864}}
"""
AZURE = "link: {kind: azure}\n"
NAMES = ("broker", "capture", "inference-cpu", "decision", "buffer", "uplink", "uplink-azure")
IMAGES = Images(registry="registry.example/site", digests=dict.fromkeys(NAMES, f"sha256:{'0' * 64}"))
Json = dict[str, Any]


def on(folder: Path, text: str = SITE + AZURE, *, secure: bool = True, images: Images = IMAGES) -> Deployment:
    (folder / "site.yaml").write_text(text, encoding="utf-8")
    return deployment(load_site(folder / "site.yaml", here=False), "iotedge", secure=secure, images=images)


def files(folder: Path, text: str = SITE + AZURE, **said: Any) -> dict[str, str]:
    return render(on(folder, text, **said))


def twin(text: str, module: str = "$edgeAgent") -> Json:
    found: Json = json.loads(text)["modulesContent"][module]["properties.desired"]
    return found


def modules(its: dict[str, str], name: str = "deployment.json") -> dict[str, Json]:
    return twin(its[name])["modules"]


def options(module: Json) -> Json:
    return joined(module["settings"])


@cache
def demo() -> dict[str, str]:
    return render(deployment(load_site(ROOT / "sites" / "demo.yaml"), "iotedge", images=IMAGES))


def found(its: Deployment) -> list[Finding]:
    return findings(its)


# Against the platform's own schemas

schemas = needs.unless(SCHEMAS.is_dir(), "schemas of IoT Edge are beside the repository, not in it")


def valid(document: Json, name: str) -> None:
    kept = [json.loads(path.read_text(encoding="utf-8")) for path in SCHEMAS.glob("*.json")]
    known: Registry[Any] = Registry().with_resources(
        (schema["id"], Resource.from_contents(schema, default_specification=DRAFT4))
        for schema in kept
        if "id" in schema
    )
    schema = json.loads((SCHEMAS / name).read_text(encoding="utf-8"))
    jsonschema.Draft4Validator(schema, registry=known).validate(document)


@schemas
@pytest.mark.parametrize("file", ["deployment.json", "base.json"])
def test_manifests_are_what_the_official_schemas_want(file):
    document = json.loads(demo()[file])
    valid(document, "azure-iot-edge-deployment-2.0.json")
    for name, schema in (("$edgeAgent", "edgeagent"), ("$edgeHub", "edgehub")):
        part = {name: document["modulesContent"][name]}
        valid(part, f"azure-iot-{schema}-deployment-1.1.json")


@schemas
@pytest.mark.parametrize("schema", ["2.0", "3.0"])
def test_template_is_what_the_official_schemas_want(schema):
    valid(json.loads(demo()["deployment.template.json"]), f"azure-iot-edge-deployment-template-{schema}.json")


@schemas
def test_a_layer_put_into_a_base_is_a_whole_manifest():
    """No schema is for layers, so a layer is merged as the hub does it."""
    whole, layer = json.loads(demo()["base.json"]), json.loads(demo()["layered.json"])
    for name, content in layer["modulesContent"].items():
        if name not in ("$edgeAgent", "$edgeHub"):
            whole["modulesContent"][name] = content
            continue
        for path, value in content.items():
            _, _, section, key = path.split(".")
            whole["modulesContent"][name]["properties.desired"][section][key] = value
    valid(whole, "azure-iot-edge-deployment-2.0.json")
    assert whole == json.loads(demo()["deployment.json"])


@schemas
@pytest.mark.parametrize(
    ("old", "new"),
    [('"restartPolicy": "always"', '"restartPolicy": "often"'), ('"SKERRY_SETTINGS"', '"SKERRY.SETTINGS"')],
)
def test_schemas_would_tell(old, new):
    text = demo()["deployment.json"]
    assert old in text
    with pytest.raises(jsonschema.ValidationError):
        valid(json.loads(text.replace(old, new)), "azure-iot-edge-deployment-2.0.json")


# Modules


def test_modules_can_do_no_more_than_their_work():
    for name, module in modules(demo()).items():
        its = options(module)
        host = its["HostConfig"]
        assert its["User"] == "10001:10001", name
        assert host["ReadonlyRootfs"] is True, name
        assert host["CapDrop"] == ["ALL"], name
        assert host["SecurityOpt"] == ["no-new-privileges:true"], name
        assert host["Memory"] == host["MemorySwap"] > 0, name
        assert host["PidsLimit"] > 0, name
        assert host["LogConfig"]["Config"] == {"max-size": "10m", "max-file": "3"}, name
        assert its["Healthcheck"]["Test"][0] == "CMD", name
        assert its["StopTimeout"] > 0, name
        assert not {"Privileged", "NetworkMode", "IpcMode", "PidMode", "Binds", "PortBindings"} & set(host), (
            name
        )
        assert (module["restartPolicy"], module["status"]) == ("always", "running"), name


def test_iot_edges_own_modules_are_pinned_bounded_and_keep_what_they_have():
    own = twin(demo()["deployment.json"])["systemModules"]
    for name, module in own.items():
        assert re.fullmatch(
            r"mcr\.microsoft\.com/azureiotedge-(agent|hub):\d+\.\d+\.\d+", module["settings"]["image"]
        )
        host = options(module)["HostConfig"]
        assert host["Memory"] > 0, name
        assert host["LogConfig"]["Config"]["max-size"] == "10m", name
        [mount] = host["Mounts"]
        assert (mount["Type"], mount["Target"]) == ("volume", module["env"]["StorageFolder"]["value"]), name


def test_each_starts_before_who_sends_to_it_and_edge_hub_before_all():
    agent = twin(demo()["deployment.json"])
    order = {name: module["startupOrder"] for name, module in agent["modules"].items()}
    assert sorted(order, key=order.__getitem__) == [
        "broker", "uplink", "buffer", "decision", "inference", "capture",
    ]  # fmt: skip
    assert agent["systemModules"]["edgeHub"]["startupOrder"] < min(order.values())


def test_options_are_in_chunks_that_the_agent_joins(tmp_path):
    for module in modules(files(tmp_path)).values():
        image, *pieces = module["settings"]
        assert image == "image"
        assert pieces == ["createOptions", *(f"createOptions{n:02d}" for n in range(1, len(pieces)))]
        texts = [module["settings"][name] for name in pieces]
        assert {len(text) for text in texts[:-1]} <= {512}
        assert 0 < len(texts[-1]) <= 512
        json.loads("".join(texts))


def test_what_a_module_is_told_is_what_it_takes():
    [module] = [m for name, m in modules(demo()).items() if name == "inference"]
    settings = parse_json(InferenceSettings, module["env"]["SKERRY_SETTINGS"]["value"], "it")
    assert settings.models[0].package == "/models/parts"
    assert (settings.bus.host, settings.bus.port) == ("broker", 8883)


def test_texts_that_a_twin_cannot_hold_are_among_the_options(tmp_path):
    rules = "".join(
        f"  - {{name: rule-{n}, kind: line, camera: belt, line: [[0.5, 0], [0.5, 0.{n + 1}]]}}\n"
        for n in range(60)
    )
    its = modules(files(tmp_path, SITE.replace("buffer:", f"{rules}buffer:") + AZURE))
    decision = its["decision"]
    assert "env" not in decision
    [line] = options(decision)["Env"]
    assert len(line) > LONGEST_TEXT
    told = merged({}, options(decision), {})
    assert len(json.loads(told[0].removeprefix("SKERRY_SETTINGS="))["rules"]) == 61
    assert "env" in its["capture"]
    assert not [
        text for module in its.values() for text in texts(module) if len(text.encode()) > LONGEST_TEXT
    ]


def texts(raw: Any) -> list[str]:
    match raw:
        case str():
            return [raw]
        case dict():
            return [text for key, value in raw.items() for text in [key, *texts(value)]]
        case _:
            return []


def test_the_broker_gets_configuration_and_rules_with_the_manifest(tmp_path):
    its = on(tmp_path)
    assert its.broker is not None
    told = dict(line.split("=", 1) for line in options(modules(render(its))["broker"])["Env"])
    lines = told["SKERRY_BROKER_CONF"].splitlines()
    assert {"listener 8883", "require_certificate true", f"acl_file {MADE}/acl"} <= set(lines)
    assert not [line for line in lines if line.startswith("#") or "/etc/skerry" in line]
    rules = [line for line in its.broker.files[ACL_FILE].splitlines() if line and not line.startswith("#")]
    assert told["SKERRY_BROKER_ACL"].splitlines() == rules


def test_without_security_the_broker_takes_everybody_and_nobody_has_a_certificate(tmp_path):
    its = modules(files(tmp_path, secure=False))
    told = options(its["broker"])["Env"]
    assert [line.partition("=")[0] for line in told] == ["SKERRY_BROKER_CONF"]
    assert "allow_anonymous true" in told[0]
    assert not [name for name, module in its.items() if "certificates" in json.dumps(module)]


def test_each_sees_its_own_certificate_and_nobody_elses(tmp_path):
    for name, module in modules(files(tmp_path)).items():
        mounts = [m for m in options(module)["HostConfig"]["Mounts"] if m["Target"] == "/run/certificates"]
        source = f"/var/lib/skerry/test/certificates/{name}"
        assert mounts == [
            {"Type": "bind", "Source": source, "Target": "/run/certificates", "ReadOnly": True}
        ], name


def test_what_is_of_the_device_is_read_only_and_below_the_sites_folder(tmp_path):
    text = SITE + "link: {kind: mqtt, host: far, user: me, password_file: far.txt}\n"
    mounts = [
        m
        for module in modules(files(tmp_path, text)).values()
        for m in options(module)["HostConfig"]["Mounts"]
    ]
    bound = {m["Source"] for m in mounts if m["Type"] == "bind"}
    assert {"/var/lib/skerry/test/secrets/far.txt", "/var/lib/skerry/test/models/parts"} <= bound
    assert all(m["Source"].startswith("/var/lib/skerry/test/") for m in mounts if m["Type"] == "bind")
    assert all(m["ReadOnly"] is True for m in mounts if m["Type"] == "bind")


def test_frames_are_a_volume_in_memory_that_capture_writes_and_inference_reads(tmp_path):
    its = modules(files(tmp_path))
    found = {
        name: mount
        for name, module in its.items()
        for mount in options(module)["HostConfig"]["Mounts"]
        if mount["Target"] == "/frames"
    }
    assert set(found) == {"capture", "inference"}
    assert found["inference"].pop("ReadOnly") is True
    assert found["capture"] == found["inference"]
    assert found["capture"]["Source"] == "skerry-test-frames-15m"
    driver = found["capture"]["VolumeOptions"]["DriverConfig"]
    assert driver["Name"] == "local"
    assert driver["Options"]["type"] == driver["Options"]["device"] == "tmpfs"
    assert driver["Options"]["o"].startswith("size=15m,")


def test_frames_of_another_size_are_another_volume(tmp_path):
    large = SITE.replace("kind: synthetic", "kind: synthetic, width: 1920, height: 1080") + AZURE
    before, after = modules(files(tmp_path)), modules(files(tmp_path, large))
    assert [name for name in before if before[name] != after[name]] == ["inference", "capture"]
    assert "skerry-test-frames-95m" in json.dumps(options(after["inference"]))


def test_state_has_a_volume_of_the_site_and_the_module(tmp_path):
    its = modules(files(tmp_path))
    for name in ("uplink", "buffer", "decision", "inference", "capture"):
        mounts = options(its[name])["HostConfig"]["Mounts"]
        volume = f"skerry-test-{name}-state"
        assert {"Type": "volume", "Source": volume, "Target": "/var/lib/skerry"} in mounts


def test_camera_of_the_device_is_a_device_of_capture_alone(tmp_path):
    camera = "{kind: v4l2, device: /dev/video2, width: 640, height: 480}"
    its = modules(files(tmp_path, SITE.replace("{kind: synthetic}", camera) + AZURE))
    host = options(its["capture"])["HostConfig"]
    assert host["Devices"] == [
        {"PathOnHost": "/dev/video2", "PathInContainer": "/dev/video2", "CgroupPermissions": "rw"}
    ]
    assert host["GroupAdd"] == ["video"]
    assert [name for name, module in its.items() if "Devices" in options(module)["HostConfig"]] == ["capture"]


def model(said: str) -> str:
    return SITE.replace(f"package: {PACKAGE}", f"package: {PACKAGE}, {said}") + AZURE


def test_gpu_of_nvidia_is_asked_for_in_the_way_of_the_architecture(tmp_path):
    its = files(tmp_path, model("device: cuda"))
    assert {"deployment.amd64.json", "deployment.arm64v8.json", "layered.amd64.json"} <= set(its)
    assert "deployment.json" not in its
    here = options(modules(its, "deployment.amd64.json")["inference"])
    assert here["HostConfig"]["DeviceRequests"] == [
        {"Driver": "nvidia", "Count": 1, "Capabilities": [["gpu"]]}
    ]
    there = options(modules(its, "deployment.arm64v8.json")["inference"])
    assert there["HostConfig"]["Runtime"] == "nvidia"
    assert "NVIDIA_VISIBLE_DEVICES=all" in there["Env"]
    one, other = modules(its, "deployment.amd64.json"), modules(its, "deployment.arm64v8.json")
    assert [name for name in one if one[name] != other[name]] == ["inference"]


def test_accelerator_of_intel_is_a_device_of_inference_on_one_architecture(tmp_path):
    its = on(tmp_path, model("runtime: openvino, device: gpu"))
    assert architectures(its) == ("amd64",)
    host = options(modules(render(its))["inference"])["HostConfig"]
    assert host["Devices"][0]["PathOnHost"] == "/dev/dri"
    assert host["GroupAdd"] == ["105"]


def test_a_class_of_device_has_one_architecture(tmp_path):
    assert architectures(on(tmp_path, SITE + AZURE + "device: jetson-8gb\n")) == ("arm64v8",)
    assert architectures(on(tmp_path, SITE + AZURE + "device: amd64-gateway\n")) == ("amd64",)
    assert architectures(on(tmp_path)) == ("amd64", "arm64v8")


def test_images_are_pulled_from_a_registry_and_without_one_they_are_there(tmp_path):
    its = modules(files(tmp_path))
    assert {module["imagePullPolicy"] for module in its.values()} == {"on-create"}
    assert its["buffer"]["settings"]["image"] == f"registry.example/site/skerry-buffer@sha256:{'0' * 64}"
    assert its["uplink"]["settings"]["image"].startswith("registry.example/site/skerry-uplink-azure@")
    assert {module["version"] for module in its.values()} == {IMAGES.tag}
    its = modules(files(tmp_path, images=Images()))
    assert its["buffer"]["settings"]["image"] == "skerry-buffer:0.1.0"
    assert {module["imagePullPolicy"] for module in its.values()} == {"never"}


def test_bounds_of_the_site_are_those_of_its_modules(tmp_path):
    text = SITE + AZURE + "resources: {inference: {memory_mb: 999, cpus: 1.5}}\n"
    host = options(modules(files(tmp_path, text))["inference"])["HostConfig"]
    assert (host["Memory"], host["NanoCpus"]) == (999 * 1024 * 1024, 1_500_000_000)


# Routes, twins, rings


def test_each_lane_has_a_route_from_its_output_and_alarms_go_first():
    routes = twin(demo()["deployment.json"], "$edgeHub")["routes"]
    assert [name.removeprefix("skerry-") for name in routes] == list(LANES)
    for priority, (name, route) in enumerate(routes.items()):
        lane = name.removeprefix("skerry-")
        assert route["route"] == f"FROM /messages/modules/uplink/outputs/{lane} INTO $upstream"
        assert route["priority"] == priority <= 9
        assert route["timeToLiveSecs"] >= 86_400
        assert re.fullmatch(r"[^.$# ]+", name)


def test_without_outputs_one_route_takes_everything(tmp_path):
    text = SITE + "link: {kind: azure, outputs: false}\n"
    [route] = twin(files(tmp_path, text)["deployment.json"], "$edgeHub")["routes"].values()
    assert route["route"] == "FROM /messages/modules/uplink/* INTO $upstream"


@pytest.mark.parametrize("link", ["{kind: mqtt, host: far}", "{kind: file, path: events.jsonl}"])
def test_a_link_past_edge_hub_has_no_route_and_no_twin(tmp_path, link):
    its = files(tmp_path, f"{SITE}link: {link}\n")
    assert twin(its["deployment.json"], "$edgeHub")["routes"] == {}
    assert set(json.loads(its["deployment.json"])["modulesContent"]) == {"$edgeAgent", "$edgeHub"}
    assert "$edgeHub" not in json.loads(its["layered.json"])["modulesContent"]
    assert list(json.loads(its["metrics.json"])["queries"]) == ["running"]


def test_the_twin_of_the_uplink_is_a_desired_state_with_the_sites_version(tmp_path):
    its = files(tmp_path, SITE + AZURE + "version: 1.2.3\n")
    desired = twin(its["deployment.json"], "uplink")
    assert parse_json(Document, json.dumps(desired), "it").version == "1.2.3"
    assert "desired.version = 'twin/1.2.3'" in json.loads(its["metrics.json"])["queries"]["applied"]


def test_another_version_of_the_site_alone_changes_no_module(tmp_path):
    """The agent creates a module anew whose version is another one."""
    assert modules(files(tmp_path)) == modules(files(tmp_path, SITE + AZURE + "version: 1.2.3\n"))
    assert {module["version"] for module in modules(files(tmp_path)).values()} == {IMAGES.tag}


def test_a_desired_state_from_a_file_leaves_the_twin_alone(tmp_path):
    its = files(tmp_path, SITE + AZURE + "remote: {desired: file, file: desired.json}\n")
    assert "uplink" not in json.loads(its["deployment.json"])["modulesContent"]


def test_rings_widen_the_condition_of_one_deployment(tmp_path):
    text = SITE.replace("site: test", "site: Gate_3") + AZURE + "version: 1.2.3\n"
    rings = json.loads(files(tmp_path, text)["rings.json"])
    assert rings["deploymentId"] == "skerry-gate_3-1-2-3"
    assert [ring["targetCondition"] for ring in rings["rings"]] == [
        "tags.skerry.site = 'Gate_3' AND tags.skerry.ring IN ['0']",
        "tags.skerry.site = 'Gate_3' AND tags.skerry.ring IN ['0', '1']",
        "tags.skerry.site = 'Gate_3'",
    ]


def test_metrics_ask_for_every_module_by_its_name(tmp_path):
    text = SITE + AZURE + "captures: {hall-2: [belt]}\n"
    queries = json.loads(files(tmp_path, text)["metrics.json"])["queries"]
    assert set(queries) == {"running", "applied", "ready"}
    assert all(
        query.startswith("SELECT deviceId FROM devices.modules WHERE moduleId = ")
        for query in queries.values()
    )
    assert "properties.reported.modules.[[hall-2]].runtimeStatus = 'running'" in queries["running"]
    assert "properties.reported.modules.broker.runtimeStatus = 'running'" in queries["running"]
    assert "properties.reported.modules.broker" not in queries["ready"]


# Templates


def test_template_has_options_as_objects_and_credentials_as_variables():
    template = twin(demo()["deployment.template.json"])
    plain = twin(demo()["deployment.json"])
    for part in ("modules", "systemModules"):
        for name, module in template[part].items():
            assert set(module["settings"]) == {"image", "createOptions"}, name
            assert module["settings"]["createOptions"] == options(plain[part][name]), name
    [credentials] = template["runtime"]["settings"]["registryCredentials"].values()
    names = {value.removeprefix("$") for value in credentials.values()}
    lines = demo()["env.example"].splitlines()
    assert {line.rstrip("=") for line in lines if not line.startswith("#")} == names
    assert all(line.endswith("=") for line in lines if not line.startswith("#"))
    assert "registryCredentials" not in demo()["deployment.json"]


# One line

CHANGES = {
    "fps: 5": ("fps: 6", {"capture"}),
    "[0.5, 1]]": ("[0.5, 0.9]]", {"decision"}),
    "bytes: 67108864": ("bytes: 77108864", {"buffer"}),
    f"package: {PACKAGE}": (f"threads: 1, package: {PACKAGE}", {"inference"}),
    "kind: azure": ("kind: azure, timeout_s: 30", {"uplink"}),
    "name: belt": ("name: ramp", {"broker", "capture", "inference", "decision"}),
}


@pytest.mark.parametrize("line", CHANGES)
def test_a_changed_line_changes_its_module_and_nothing_else(tmp_path, line):
    instead, wanted = CHANGES[line]
    text = SITE + AZURE
    assert line in text
    changed = text.replace(line, instead).replace(
        "camera: belt", "camera: ramp" if "ramp" in instead else "camera: belt"
    )
    one, other = files(tmp_path, text), files(tmp_path, changed)
    for name in ("deployment.json", "deployment.template.json"):
        before, after = modules(one, name), modules(other, name)
        assert {m for m in before if before[m] != after[m]} == wanted
        shells = [json.loads(its[name]) for its in (one, other)]
        for shell in shells:
            shell["modulesContent"]["$edgeAgent"]["properties.desired"].pop("modules")
        assert shells[0] == shells[1]
    same = {"base.json", "rings.json", "metrics.json", "env.example"}
    assert {name for name in one if one[name] == other[name]} == same


# What is refused


def only(its: Deployment) -> Finding:
    [one] = found(its)
    return one


def test_a_sound_site_has_nothing_to_say(tmp_path):
    assert found(on(tmp_path)) == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("edgeHub", "IoT Edge's own"),
        ("EDGEAGENT", "IoT Edge's own"),
        ("a", "two characters"),
        ("-hall", "letter or digit"),
    ],
)
def test_a_module_that_cannot_be_called_so_is_an_error(tmp_path, name, said):
    one = only(on(tmp_path, SITE + AZURE + f"captures: {{'{name}': [belt]}}\n"))
    assert (one.where, one.level) == (f"$.captures.{name}", "error")
    assert said in one.text
    assert one.text.endswith(f"got {name!r}")


def test_more_modules_than_a_device_may_have_is_an_error(tmp_path):
    cameras = "".join(f"  - {{name: c{n}, source: {{kind: synthetic}}}}\n" for n in range(44))
    captures = ", ".join(f"m{n}: [c{n}]" for n in range(44))
    text = (
        SITE.replace("models:", f"{cameras}models:") + AZURE + f"captures: {{{captures}, capture: [belt]}}\n"
    )
    one = next(f for f in found(on(tmp_path, text)) if f.where == "$.captures")
    assert one.text.startswith("expected at most 50 modules with IoT Edge's own, got 52")


def many_rules(n: int) -> str:
    rules = "".join(
        f"  - {{name: rule-{k}, kind: line, camera: belt, line: [[0.5, 0], [0.5, 1]]}}\n" for k in range(n)
    )
    return SITE.replace("buffer:", f"{rules}buffer:") + AZURE


def test_more_than_the_agents_twin_holds_is_an_error_where_most_of_it_is_from(tmp_path):
    its = on(tmp_path, many_rules(300))
    [one] = found(its)
    assert (one.where, one.level) == ("$.rules", "error")
    assert f"expected at most {TWIN_BYTES} bytes in the twin of edgeAgent" in one.text
    assert "decision" in one.text


def test_more_than_the_agent_can_report_is_a_warning(tmp_path):
    sizes = {n: found(on(tmp_path, many_rules(n))) for n in range(20, 301, 20)}
    levels = [[f.level for f in findings] for findings in sizes.values()]
    assert levels[0] == []
    assert ["warning"] in levels
    assert levels[-1] == ["error"]
    assert levels == sorted(levels, key=[[], ["warning"], ["error"]].index)


def test_a_twin_is_measured_as_the_hub_does():
    assert twin_bytes({"a": "bc", "d": {"e": 1, "f": True}}) == 3 + 1 + 1 + 8 + 1 + 4
    assert twin_bytes({"é": "ü"}) == 4


def test_a_committed_site_is_well_below_the_limits():
    assert twin_bytes(twin(demo()["deployment.json"])) < TWIN_BYTES * 2 / 3


@pytest.mark.parametrize(
    ("link", "where", "level", "said"),
    [
        ("{kind: greengrass}", "$.link.kind", "error", "got greengrass"),
        ("{kind: file, path: x}", "$.link.kind", "warning", "got file"),
        (
            "{kind: azure, identity: {kind: connection-string, connection_string_file: c}}",
            "$.link.identity.kind", "warning", "expected auto, got connection-string",
        ),
    ],
)  # fmt: skip
def test_a_link_that_makes_no_sense_there_is_said(tmp_path, link, where, level, said):
    one = only(on(tmp_path, f"{SITE}link: {link}\n"))
    assert (one.where, one.level) == (where, level)
    assert said in one.text
    one = only(on(tmp_path, f"{SITE}targets: {{iotedge: {{link: {link}}}}}\n"))
    assert one.where == where.replace("$.link", "$.targets.iotedge.link")


def test_a_group_whose_number_only_the_device_knows_is_a_warning(tmp_path):
    one = only(on(tmp_path, model("runtime: openvino, device: npu")))
    assert (one.where, one.level) == ("$.models[0].device", "warning")
    assert "105" in one.text


def test_no_registry_is_a_warning(tmp_path):
    one = only(on(tmp_path, images=Images()))
    assert (one.where, one.level) == ("--registry", "warning")


def test_check_names_the_path_and_render_writes_nothing(tmp_path, capsys):
    (tmp_path / "site.yaml").write_text(f"{SITE}link: {{kind: greengrass}}\n", encoding="utf-8")
    path = str(tmp_path / "site.yaml")
    assert main(["check", path, "--target", "iotedge"]) == 78
    assert "site.yaml: $.link.kind: expected azure or another link, got greengrass" in capsys.readouterr().err
    assert main(["render", "iotedge", path, "--out", str(tmp_path / "out")]) == 78
    assert not (tmp_path / "out").exists()


# Files


def test_the_same_site_gives_the_same_files_wherever_it_is(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    assert files(tmp_path) == files(tmp_path / "elsewhere")
    assert not [name for name, text in files(tmp_path).items() if str(tmp_path) in text]


def test_no_secret_lands_in_a_file(tmp_path, capsys):
    canaries = {
        "far.txt": "hunter2",
        "camera.txt": "swordfish",
        "device/certificates/uplink/tls.key": "PRIVATE KEY",
    }
    for name, text in canaries.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    camera = "{kind: rtsp, url: 'rtsp://192.0.2.1/a', user: me, password_file: camera.txt}"
    text = SITE.replace("{kind: synthetic}", camera)
    (tmp_path / "site.yaml").write_text(
        text + "link: {kind: mqtt, host: far, user: me, password_file: far.txt}\n", encoding="utf-8"
    )
    out = tmp_path / "out"
    assert main(["render", "iotedge", str(tmp_path / "site.yaml"), "--out", str(out)]) == 0
    written = [path for path in out.rglob("*") if path.is_file()]
    assert out / "device/models/parts/model.onnx" in written
    for canary in canaries.values():
        assert not [path for path in written if canary.encode() in path.read_bytes()]
    said = capsys.readouterr().out
    assert f"device/secrets/far.txt: put {tmp_path}/far.txt there" in said
    assert "device becomes /var/lib/skerry/test on the device" in said
    assert "--content deployment.json" in said


def test_every_image_has_a_form_that_the_agent_takes(tmp_path):
    """The pattern is the agent's own: Azure/iotedge, DockerConfig.cs, ImageRegexPattern."""
    pattern = re.compile(r"^(?P<repo>([^/]*/)*)(?P<image>[^/:]+)(?P<tag>:[^/:]+)?$")
    port = Images(registry="registry.example:5000/x", digests=IMAGES.digests)
    for images in (IMAGES, Images(), Images(registry="registry.example:5000/x"), port):
        for module in modules(files(tmp_path, images=images)).values():
            found = pattern.match(module["settings"]["image"])
            assert found is not None, module["settings"]["image"]
            assert found["tag"], "the agent would take latest"


def test_the_readme_says_what_the_manifests_have():
    page = (ROOT / "deployment-manifests" / "README.md").read_text(encoding="utf-8")
    for name in demo():
        assert f"`{name}`" in page
    agent = twin(demo()["deployment.json"])
    for module in agent["systemModules"].values():
        assert f"| {module['settings']['image']} |" in page
    for name, module in (agent["modules"] | {"edgeHub": agent["systemModules"]["edgeHub"]}).items():
        row = next(line for line in page.splitlines() if line.startswith(f"| {name} | "))
        _, _, _, order, memory, *_ = (cell.strip() for cell in row.split("|"))
        assert int(order) == module["startupOrder"], name
        assert int(memory) == options(module)["HostConfig"]["Memory"] // 1024**2, name
    for name, route in twin(demo()["deployment.json"], "$edgeHub")["routes"].items():
        row = next(
            line for line in page.splitlines() if line.startswith(f"| {name.removeprefix('skerry-')} | ")
        )
        days = route["timeToLiveSecs"] // 86_400
        assert row.endswith(f"| {route['priority']} | {days} day{'s' if days > 1 else ''} |")
    for query in json.loads(demo()["metrics.json"])["queries"]:
        assert f"| `{query}` | " in page
