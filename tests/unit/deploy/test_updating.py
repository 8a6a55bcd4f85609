"""A site that exchanges its models, on every target: who sees the store, the sources, and who signs."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from model_folders import package_folder
from needs import ROOT
from pod_security import refused
from skerry.cli import main
from skerry.deploy import engine, k3s
from skerry.deploy.cluster import flow_place
from skerry.deploy.compose import COMPOSE_FILE
from skerry.deploy.contained import STORE
from skerry.deploy.containers import Container
from skerry.deploy.deployment import Deployment, deployment
from skerry.deploy.iotedge_manifest import modules
from skerry.deploy.k3s_overlays import patch, variants
from skerry.deploy.k3s_pods import VISION, secrets
from skerry.deploy.site import load_site
from skerry.deploy.targets import TARGETS, findings
from skerry.updater.settings import FolderSourceSettings, UpdaterSettings

FOLDER = "{kind: folder, path: /media/stick}"
HTTP = (
    "{kind: http, url: 'https://models.example/fleet', token_file: fleet.token, ca: fleet.pem, "
    "header_files: {X-Site: site.txt}}"
)
REGISTRY = (
    "{kind: registry, url: 'https://192.0.2.7:5000', repository: models/parts, username: me, "
    "password_file: registry.password}"
)
SITE = f"""
site: test
cameras:
  - {{name: belt, source: {{kind: synthetic}}, fps: 5}}
models:
  - {{package: {ROOT / "models" / "parts"}, slot: belt}}
updater:
  root: fleet/1.root.json
  slots: {{belt: {{model: parts}}}}
  sources: [{FOLDER}, {HTTP}, {REGISTRY}]
"""
ONLY_A_STICK = SITE.replace(f", {HTTP}, {REGISTRY}", "")
SECRETS = {"fleet.token", "fleet.pem", "site.txt", "registry.password"}


def on(target: str, folder: Path, text: str = SITE, **said: Any) -> Deployment:
    folder.mkdir(exist_ok=True)
    (folder / "site.yaml").write_text(text, encoding="utf-8")
    return deployment(load_site(folder / "site.yaml", here=False), target, **said)  # type: ignore[arg-type]  # one of TARGETS


def one(its: Deployment, kind: str) -> Container:
    [found] = its.of(kind)
    return found


def store_of(container: Container) -> bool | None:
    """Whether it can write the store; None: it has none."""
    [*stores] = (volume for volume in container.volumes if volume.kind == "store")
    return not stores[0].read_only if stores else None


@pytest.mark.parametrize("target", TARGETS)
def test_the_updater_writes_the_store_inference_reads_it_and_nobody_else_sees_it(target, tmp_path):
    its = on(target, tmp_path)
    assert {c.kind: store_of(c) for c in its.containers} == {
        "updater": True, "inference": False, "broker": None, "capture": None, "decision": None,
        "buffer": None, "uplink": None,
    }  # fmt: skip
    for kind in ("updater", "inference"):
        settings = one(its, kind).settings
        assert settings is not None
        assert settings.store == STORE  # type: ignore[attr-defined]  # both have one


@pytest.mark.parametrize("target", TARGETS)
def test_a_site_without_an_updater_has_no_store(target, tmp_path):
    text = SITE[: SITE.index("updater:")].replace(", slot: belt", "")
    its = on(target, tmp_path, text)
    assert {store_of(container) for container in its.containers} == {None}
    text = "".join(TARGETS[its.target].render(its).values())
    assert STORE not in text
    assert "model-store" not in text


@pytest.mark.parametrize("target", TARGETS)
def test_the_updater_is_as_confined_and_bounded_as_everybody(target, tmp_path):
    updater = one(on(target, tmp_path), "updater")
    assert (updater.image, updater.memory_mb, updater.pids) == ("updater", 192, 64)
    assert updater.health[-1] == str(updater.port) == "8080"
    assert (updater.devices, updater.groups, updater.accelerators) == ((), (), ())
    assert [v.kind for v in updater.volumes] == ["state", "store"]
    its = on(target, tmp_path, SITE + "resources: {updater: {memory_mb: 99, cpus: 0.5}}\n")
    assert (one(its, "updater").memory_mb, one(its, "updater").cpus) == (99, 0.5)


@pytest.mark.parametrize("target", TARGETS)
def test_the_updater_starts_first_and_ends_last_but_for_the_broker(target, tmp_path):
    its = on(target, tmp_path)
    assert [c.kind for c in its.containers][:2] == ["broker", "updater"]


@pytest.mark.parametrize(
    ("sources", "goes"),
    [("", False), (FOLDER, False), (HTTP, True), (REGISTRY, True), (f"{FOLDER}, {HTTP}", True)],
)
def test_the_updater_goes_outside_only_where_a_source_is(sources, goes, tmp_path):
    text = SITE.replace(f"{FOLDER}, {HTTP}, {REGISTRY}", sources)
    its = on("compose", tmp_path, text)
    assert one(its, "updater").outside == goes
    assert [c.name for c in its.containers if c.outside] == ["updater"] * goes
    policies = {p["metadata"]["name"] for p in k3s.objects(on("k3s", tmp_path, text)) if "spec" in p}
    assert ("outside-updater" in policies) == goes


@pytest.mark.parametrize("target", sorted(TARGETS.keys() - {"k3s"}))
def test_who_signs_is_an_input_logins_are_secrets_and_a_stick_is_the_devices(target, tmp_path):
    its = on(target, tmp_path)
    seen = {(m.role, m.name) for m in one(its, "updater").mounts}
    assert seen == {
        ("inputs", "1.root.json"), ("sources", "stick"), *(("secrets", name) for name in SECRETS)
    }  # fmt: skip
    assert [c.kind for c in its.containers if any(m.role != "models" for m in c.mounts)] == ["updater"]
    settings = one(its, "updater").settings
    assert isinstance(settings, UpdaterSettings)
    assert settings.root == "/inputs/1.root.json"
    assert settings.sources[0] == FolderSourceSettings(path="/sources/stick")


def test_in_a_pod_who_signs_comes_as_secrets_do_and_a_stick_is_a_folder_of_inputs(tmp_path):
    updater = one(on("k3s", tmp_path), "updater")
    assert {(m.role, m.name) for m in updater.mounts} == {
        ("inputs", "stick"), ("secrets", "1.root.json"), *(("secrets", name) for name in SECRETS)
    }  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_of_a_sources_secrets_is_rendered_and_nothing_need_be_there(target, tmp_path):
    for name in SECRETS:
        (tmp_path / name).write_text(f"hunter2-{name}", encoding="utf-8")
    its = on(target, tmp_path)
    text = "\n".join(TARGETS[its.target].render(its).values())
    assert "hunter2" not in text
    assert str(tmp_path) not in text
    # Where none of these files is.
    assert TARGETS[its.target].render(on(target, tmp_path / "elsewhere")) == TARGETS[its.target].render(its)


# Compose and engine


def test_compose_mounts_a_stick_that_may_come_later(tmp_path):
    its = on("compose", tmp_path, SITE.replace("/media/stick", "/media/a stick"))
    document = yaml.safe_load(TARGETS["compose"].render(its)[COMPOSE_FILE])
    services = document["services"]
    assert [v for v in services["updater"]["volumes"] if "sources" in v] == [
        "/media/a stick:/sources/a stick:ro,rslave"
    ]
    assert f"model-store:{STORE}" in services["updater"]["volumes"]
    assert f"model-store:{STORE}:ro" in services["inference"]["volumes"]
    assert document["volumes"]["model-store"] == {}
    assert services["updater"]["depends_on"] == {"broker": {"condition": "service_started"}}
    assert services["uplink"]["depends_on"] == {"updater": {"condition": "service_started"}}


def wanted(its: Deployment, **binds: str) -> engine.Wanted:
    options = engine.Options(binds={name.replace("_", "/"): path for name, path in binds.items()})
    return engine.wanted(its, dict.fromkeys(engine.copies(its, options), "0" * 12), options)


def test_an_engine_copies_who_signs_and_mounts_the_stick_of_its_machine(tmp_path):
    its = on("compose", tmp_path)
    assert "sources" not in {copy.content for copy in engine.copies(its)}
    want = wanted(its)
    [updater] = (c for c in want.containers if c.kind == "updater")
    assert updater.config["HostConfig"]["Binds"] == ["/media/stick:/sources/stick:ro,rslave"]
    assert not [c.kind for c in want.containers if "Binds" in c.config["HostConfig"] and c is not updater]
    mounts = {m["Target"]: m for m in updater.config["HostConfig"]["Mounts"]}
    assert mounts["/inputs"]["Source"].startswith("skerry-test-inputs-")
    assert mounts[STORE] == {
        "Type": "volume", "Source": "skerry-test-model-store", "Target": STORE, "ReadOnly": False
    }  # fmt: skip


def test_the_stick_may_be_elsewhere_on_the_engines_machine(tmp_path):
    [updater] = (
        c for c in wanted(on("compose", tmp_path), sources_stick="/mnt/x").containers if c.kind == "updater"
    )
    assert updater.config["HostConfig"]["Binds"] == ["/mnt/x:/sources/stick:ro,rslave"]
    assert "/sources/stick" not in {m["Target"] for m in updater.config["HostConfig"]["Mounts"]}


def test_the_store_stays_when_the_site_is_taken_away(tmp_path):
    want = wanted(on("compose", tmp_path))
    labels = {engine.SITE_LABEL: "test"}
    there = engine.There(
        volumes=tuple(
            engine.Thing(name=v.name, labels={**labels, engine.KIND_LABEL: v.kind}) for v in want.volumes
        )
    )
    found = engine.removal("test", there, state=False)
    assert "skerry-test-model-store" in found.kept
    assert "= volume skerry-test-model-store stays, with the models that came" in engine.lines(found)
    gone = engine.removal("test", there, state=True)
    assert "skerry-test-model-store" in {thing.name for thing in gone.old_volumes}


def test_on_an_engine_and_on_a_cluster_only_the_broker_ends_after_the_updater(tmp_path):
    want = wanted(on("compose", tmp_path))
    changes = engine.Changes(
        containers=tuple(
            engine.Change(action="remove", name=c.name, module=c.module, kind=c.kind, old="x")
            for c in want.containers
        )
    )
    assert [c.kind for c in changes.stopping][-3:] == ["uplink", "updater", "broker"]
    deployments = [o for o in k3s.objects(on("k3s", tmp_path)) if o["kind"] == "Deployment"]
    ended = [o["metadata"]["name"] for o in sorted(deployments, key=flow_place)]
    assert ended[-3:] == ["uplink", "updater", "broker"]


# IoT Edge and Greengrass


def test_iot_edge_mounts_a_stick_that_may_come_later_and_the_store_for_reading(tmp_path):
    made = modules(on("iotedge", tmp_path), "amd64")
    hosts = {}
    for name, module in made.items():
        _, *pieces = module["settings"].values()
        hosts[name] = json.loads("".join(pieces))["HostConfig"]
    assert hosts["updater"]["Binds"] == ["/media/stick:/sources/stick:ro,rslave"]
    assert [name for name, host in hosts.items() if "Binds" in host] == ["updater"]
    store = {"Type": "volume", "Source": "skerry-test-model-store", "Target": STORE}
    assert store in hosts["updater"]["Mounts"]
    assert {**store, "ReadOnly": True} in hosts["inference"]["Mounts"]
    sources = {m["Target"]: m["Source"] for m in hosts["updater"]["Mounts"] if m["Type"] == "bind"}
    assert "/sources/stick" not in sources, "one of these has to be there"
    assert sources["/inputs/1.root.json"] == "/var/lib/skerry/test/inputs/1.root.json"
    assert sources["/run/secrets/fleet.token"] == "/var/lib/skerry/test/secrets/fleet.token"


@pytest.mark.parametrize("variant", ["nucleus", "lite"])
def test_a_component_of_greengrass_mounts_the_same(variant, tmp_path):
    files = TARGETS["greengrass"].render(on("greengrass", tmp_path))
    texts = {name: text for name, text in files.items() if name.startswith(f"{variant}/recipes/")}
    [updater] = (text for name, text in texts.items() if ".updater-" in name)
    [inference] = (text for name, text in texts.items() if ".inference-" in name)
    script = yaml.safe_load(updater)["Manifests"][0]["Lifecycle"]
    script = script["run" if variant == "lite" else "startup"]["Script"]
    assert "--volume /media/stick:/sources/stick:ro,rslave" in script
    assert f"--mount type=volume,source=skerry-test-model-store,target={STORE} " in script
    assert f"source=skerry-test-model-store,target={STORE},readonly" in inference
    assert '--mount "type=bind,source=$SKERRY_FOLDER/inputs/1.root.json,' in script
    assert "skerry-test-outside" in script
    assert subprocess.run(["sh", "-n"], input=script, text=True, check=False).returncode == 0


def test_the_name_of_a_stick_is_no_part_of_a_shells_words(tmp_path):
    text = ONLY_A_STICK.replace("/media/stick", "'/media/a stick'")
    files = TARGETS["greengrass"].render(on("greengrass", tmp_path, text))
    [recipe] = (text for name, text in files.items() if re.match(r"lite/recipes/.*updater-", name))
    assert "--volume '/media/a stick:/sources/a stick:ro,rslave'" in recipe


# Kubernetes


def of_kind(its: Deployment, kind: str) -> dict[str, Any]:
    return {each["metadata"]["name"]: each for each in k3s.objects(its) if each["kind"] == kind}


def test_two_pods_share_one_claim_that_the_updater_brings(tmp_path):
    text = SITE + "  room: {quota_bytes: 1073741824, floor_bytes: 104857600}\n  audit_bytes: 8388608\n"
    its = on("k3s", tmp_path, text)
    names = [each["metadata"]["name"] for each in k3s.objects(its) if each["kind"] == "PersistentVolumeClaim"]
    assert names.count("model-store") == 1
    claims = of_kind(its, "PersistentVolumeClaim")
    asked = {name: claims[name]["spec"]["resources"]["requests"]["storage"] for name in claims}
    assert asked["model-store"] == f"{1024 + 100 + 64}Mi", "quota, floor, and a little"
    assert asked["updater-state"] == "72Mi"
    assert claims["model-store"]["metadata"]["labels"]["app.kubernetes.io/component"] == "updater"


def test_in_the_pod_of_capture_and_inference_only_inference_has_the_store_and_cannot_write_it(tmp_path):
    pods = of_kind(on("k3s", tmp_path), "Deployment")
    vision = pods[VISION]["spec"]["template"]["spec"]
    mounts = {
        c["name"]: [m for m in c["volumeMounts"] if m["name"] == "model-store"] for c in vision["containers"]
    }
    assert mounts == {
        "capture": [],
        "inference": [{"name": "model-store", "mountPath": STORE, "readOnly": True}],
    }


def test_the_updater_runs_on_the_node_of_inference_and_nobody_else_asks_for_one(tmp_path):
    pods = {n: d["spec"]["template"]["spec"] for n, d in of_kind(on("k3s", tmp_path), "Deployment").items()}
    assert [name for name, pod in pods.items() if "affinity" in pod] == ["updater"]
    [term] = pods["updater"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    labels = of_kind(on("k3s", tmp_path), "Deployment")[VISION]["spec"]["template"]["metadata"]["labels"]
    assert term["labelSelector"]["matchLabels"].items() <= labels.items()


def test_its_policy_lets_it_to_its_sources_and_nowhere_else(tmp_path):
    policy = of_kind(on("k3s", tmp_path), "NetworkPolicy")["outside-updater"]
    assert policy["spec"]["egress"] == [
        {"to": [{"ipBlock": {"cidr": "192.0.2.7/32"}}], "ports": [{"port": 5000, "protocol": "TCP"}]},
        {"ports": [{"port": 443, "protocol": "TCP"}]},
    ]
    assert policy["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "updater"


def test_its_secret_has_who_signs_and_its_logins(tmp_path):
    its = {secret.name: secret for secret in secrets(on("k3s", tmp_path))}
    assert its["secrets-updater"].keys == {
        name: str(tmp_path / where / name)
        for name, where in [*((name, "") for name in SECRETS), ("1.root.json", "fleet")]
    }


def test_pod_security_and_the_schemas_take_the_updaters_objects(tmp_path):
    its = on("k3s", tmp_path)
    for name, each in of_kind(its, "Deployment").items():
        assert refused(each["spec"]["template"]["spec"]) == [], name
    for each in k3s.objects(its):
        kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)


def test_an_overlay_leaves_the_updater_as_it_is_but_for_its_node_and_its_class_of_devices(tmp_path):
    its = on("k3s", tmp_path)
    mine = of_kind(its, "Deployment")["updater"]
    others = {
        name: variant
        for name, variant in variants(its).items()
        if patch(mine, of_kind(variant, "Deployment")["updater"])
    }
    told = {name: one_of(other).device_class for name, other in others.items()}
    assert told == {"intel": "amd64-intel", "arm64": "arm64-4gb"}


def one_of(its: Deployment) -> UpdaterSettings:
    settings = one(its, "updater").settings
    assert isinstance(settings, UpdaterSettings)
    return settings


# What is found


@pytest.mark.parametrize("target", TARGETS)
def test_a_good_site_has_no_error(target, tmp_path):
    assert [f for f in findings(on(target, tmp_path)) if f.level == "error"] == []


@pytest.mark.parametrize(
    ("old", "new", "where", "text"),
    [
        ("https://192.0.2.7", "https://localhost", "[2].url", "a host that a container reaches"),
        ("/media/stick", "'/media/a:b'", "[0].path", "expected a folder of letters"),
        ("/media/stick", "/", "[0].path", "expected a folder of letters"),
    ],
)
def test_a_source_that_means_something_else_in_a_container_is_an_error_at_its_path(
    old, new, where, text, tmp_path
):
    found = findings(on("compose", tmp_path, SITE.replace(old, new)))
    assert any(
        f.where == f"$.updater.sources{where}" and text in f.text and f.level == "error" for f in found
    ), found


def test_a_source_that_only_mdns_knows_is_a_warning_on_kubernetes(tmp_path):
    found = findings(on("k3s", tmp_path, SITE.replace("models.example", "models.local")))
    assert "$.updater.sources[1].url" in {f.where for f in found if f.level == "warning"}


@pytest.mark.parametrize("target", TARGETS)
def test_the_example_is_one_for_every_target_before_anybody_has_signed(target):
    its = deployment(load_site(ROOT / "sites/updating.yaml", here=False), target)
    assert [f for f in findings(its) if f.level == "error"] == []
    assert TARGETS[its.target].render(its)


def checked(folder: Path, text: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    (folder / "site.yaml").write_text(text, encoding="utf-8")
    code = main(["check", str(folder / "site.yaml"), "--target", "compose"])
    return code, capsys.readouterr().err


def test_check_warns_of_root_metadata_that_is_not_there(tmp_path, capsys):
    code, said = checked(tmp_path, SITE, capsys)
    assert code == 0
    assert "$.updater.root: expected root metadata in" in said


def test_check_refuses_root_metadata_that_is_none(tmp_path, capsys):
    (tmp_path / "fleet").mkdir()
    (tmp_path / "fleet/1.root.json").write_text('{"signed": {"_type": "targets"}}', encoding="utf-8")
    code, said = checked(tmp_path, SITE, capsys)
    assert code == 78
    assert "$.updater.root: expected root metadata in" in said


@pytest.mark.parametrize(
    ("exchange", "bound", "warns"),
    [
        ("{}", 1000, True), ("{}", 1024, False), ("{memory: unload}", 600, False),
    ],
)  # fmt: skip
def test_check_warns_where_two_models_do_not_fit_by_their_own_word(exchange, bound, warns, tmp_path, capsys):
    package = package_folder(tmp_path / "heavy", "1.0.0")
    manifest = json.loads((ROOT / "models/parts/manifest.json").read_text(encoding="utf-8"))
    for path in (ROOT / "models/parts").iterdir():
        (package / path.name).write_bytes(path.read_bytes())
    manifest["budget"] = {"memory_mb": 512}
    (package / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    text = SITE.replace(
        f"{ROOT / 'models' / 'parts'}, slot: belt", f"{package}, slot: belt, exchange: {exchange}"
    )
    _, said = checked(tmp_path, text + f"resources: {{inference: {{memory_mb: {bound}}}}}\n", capsys)
    assert ("$.models[0].exchange.memory: expected unload" in said) == warns


def test_here_root_metadata_has_to_be_there(tmp_path, capsys):
    (tmp_path / "site.yaml").write_text(ONLY_A_STICK, encoding="utf-8")
    assert main(["check", str(tmp_path / "site.yaml")]) == 78
    assert "site.yaml: $.updater.root: expected root metadata (skerry model sign" in capsys.readouterr().err
    (tmp_path / "fleet").mkdir()
    (tmp_path / "fleet/1.root.json").touch()
    assert main(["check", str(tmp_path / "site.yaml")]) == 0
