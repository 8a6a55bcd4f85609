"""The Kubernetes objects of a site: what they let each pod do, and what a changed line changes."""

import copy
import json
import re
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import msgspec
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import needs
from needs import ROOT
from pod_security import refused
from skerry.cli import main
from skerry.deploy.acl import acl
from skerry.deploy.deployment import Deployment, deployment
from skerry.deploy.images import Images
from skerry.deploy.k3s import BUNDLE_FILE, IMAGES_FILE, LOADER_FILE, image_list, objects, render
from skerry.deploy.k3s_overlays import patch, variants
from skerry.deploy.k3s_pods import ENDPOINT_REFERENCE, SecretKeys, camera_resource, secrets
from skerry.deploy.site import load_site
from skerry.deploy.targets import findings
from skerry.settings import parse_json
from skerry.uplink.settings import AwsLink, AzureLink, UplinkSettings

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
CAMERA = "{name: belt, source: {kind: synthetic}, fps: 5}"
FAR = "link: {kind: mqtt, host: far.example, port: 8883, user: me, password_file: far.txt, tls: {}}\n"
VERSION = kubernetes_validate.latest_version()
OVERLAYS = ("cpu", "nvidia", "intel", "arm64", "azure", "aws")
Object = dict[str, Any]


def on(folder: Path, text: str = SITE, **said: Any) -> Deployment:
    folder.mkdir(exist_ok=True)
    (folder / "site.yaml").write_text(text, encoding="utf-8")
    return deployment(load_site(folder / "site.yaml", here=False), "k3s", **said)


def with_camera(source: str, text: str = SITE) -> str:
    return text.replace("{kind: synthetic}", source)


def read_all(text: str) -> list[Any]:
    """Documents of YAML, by the loader that is ten times as fast."""
    return list(yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def read(text: str) -> Any:
    [document] = read_all(text)
    return document


def of_kind(its: Deployment, kind: str) -> dict[str, Object]:
    return {each["metadata"]["name"]: each for each in objects(its) if each["kind"] == kind}


def pods(its: Deployment) -> dict[str, Object]:
    return {name: each["spec"]["template"]["spec"] for name, each in of_kind(its, "Deployment").items()}


def containers(its: Deployment) -> dict[str, Object]:
    return {c["name"]: c for pod in pods(its).values() for c in pod["containers"]}


def keyed(documents: list[Object]) -> dict[tuple[str, str], Object]:
    return {(each["kind"], each["metadata"]["name"]): each for each in documents}


@cache
def demo() -> Deployment:
    return deployment(load_site(ROOT / "sites" / "demo.yaml", here=False), "k3s")


@cache
def demo_files() -> dict[str, str]:
    return render(demo())


# --- what the pods may do


def test_pod_security_restricted_takes_every_pod(tmp_path):
    camera = with_camera("{kind: v4l2, device: /dev/video0, width: 640, height: 480}", SITE + FAR)
    for its in (demo(), on(tmp_path, camera), *variants(demo()).values(), *variants(on(tmp_path)).values()):
        for name, pod in pods(its).items():
            assert refused(pod) == [], name


BREAKS: dict[str, Callable[[Object], Any]] = {
    "hostNetwork": lambda pod: pod.update(hostNetwork=True),
    "volume": lambda pod: pod["volumes"].append({"name": "x", "hostPath": {"path": "/dev"}}),
    "sysctl": lambda pod: pod["securityContext"].update(sysctls=[{"name": "kernel.msgmax", "value": "1"}]),
    "runAsUser": lambda pod: pod["securityContext"].update(runAsUser=0),
    "runAsNonRoot": lambda pod: pod["securityContext"].pop("runAsNonRoot"),
    "seccompProfile": lambda pod: pod["securityContext"].pop("seccompProfile"),
    "privileged": lambda pod: pod["containers"][0]["securityContext"].update(privileged=True),
    "allowPrivilegeEscalation": lambda pod: pod["initContainers"][0]["securityContext"].clear(),
    "capabilities": lambda pod: pod["containers"][0]["securityContext"]["capabilities"].update(add=["KILL"]),
    "hostPort": lambda pod: pod["containers"][0]["ports"][0].update(hostPort=80),
    "procMount": lambda pod: pod["containers"][0]["securityContext"].update(procMount="Unmasked"),
    "seLinuxOptions": lambda pod: pod["securityContext"].update(seLinuxOptions={"user": "x"}),
    "appArmorProfile": lambda pod: pod["securityContext"].update(appArmorProfile={"type": "Unconfined"}),
    "host of a probe": lambda pod: pod["containers"][0]["livenessProbe"]["httpGet"].update(host="x"),
}


@pytest.mark.parametrize("reason", BREAKS)
def test_the_reading_of_pod_security_refuses_what_the_standard_does(reason):
    pod = copy.deepcopy(pods(demo())["vision"])
    BREAKS[reason](pod)
    assert any(reason in said for said in refused(pod))


def test_namespace_enforces_pod_security_restricted():
    [its] = of_kind(demo(), "Namespace").values()
    assert its["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert {e["metadata"].get("namespace") for e in objects(demo()) if e["kind"] != "Namespace"} == {
        its["metadata"]["name"]
    }


def test_no_pod_has_a_token_of_the_cluster():
    accounts = of_kind(demo(), "ServiceAccount")
    for name, pod in pods(demo()).items():
        assert pod["automountServiceAccountToken"] is False
        assert accounts[pod["serviceAccountName"]]["automountServiceAccountToken"] is False, name
    assert not [e for e in objects(demo()) if "Role" in e["kind"]]


def test_root_file_systems_are_read_only_and_resources_bounded():
    for pod in pods(demo()).values():
        for container in (*pod.get("initContainers", []), *pod["containers"]):
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert {"memory", "cpu"} <= container["resources"]["requests"].keys()
            assert mib(container["resources"]["limits"]["memory"]) > 0


def mib(quantity: str) -> int:
    assert quantity.endswith("Mi")
    return int(quantity.removesuffix("Mi"))


def test_capture_and_inference_share_frames_in_the_memory_of_one_pod():
    pod = pods(demo())["vision"]
    [frames] = [v for v in pod["volumes"] if v["name"] == "frames"]
    assert frames["emptyDir"] == {"medium": "Memory", "sizeLimit": "15Mi"}
    mounts = {c["name"]: {m["name"]: m for m in c["volumeMounts"]}["frames"] for c in pod["containers"]}
    assert {name: mount.get("readOnly", False) for name, mount in mounts.items()} == {
        "capture": False,
        "inference": True,
    }
    others = [c for name, p in pods(demo()).items() if name != "vision" for c in p["containers"]]
    assert not [c for c in others if any(m["name"] == "frames" for m in c["volumeMounts"])]


def test_frames_fit_into_the_memory_of_who_writes_them(tmp_path):
    """A page of a volume in memory counts against the container that wrote it, and its request keeps it."""
    small = containers(on(tmp_path))["capture"]["resources"]
    its = on(tmp_path, with_camera("{kind: synthetic, width: 1920, height: 1080}"))
    large = containers(its)["capture"]["resources"]
    [frames] = [v for v in pods(its)["vision"]["volumes"] if v["name"] == "frames"]
    assert frames["emptyDir"]["sizeLimit"] == "95Mi"
    for which in ("requests", "limits"):
        assert mib(large[which]["memory"]) - mib(small[which]["memory"]) == 95 - 15


def test_several_captures_and_inference_have_ports_of_their_own(tmp_path):
    two = SITE.replace(f"- {CAMERA}", f"- {CAMERA}\n  - {CAMERA.replace('belt', 'hall')}")
    its = on(tmp_path, two + "captures: {capture: [belt], capture-hall: [hall]}\n")
    pod = pods(its)["vision"]
    ports = [c["ports"][0]["containerPort"] for c in pod["containers"]]
    assert len(set(ports)) == len(ports) == 3
    names = [v["name"] for v in pod["volumes"]]
    assert len(set(names)) == len(names)


def test_everything_that_a_module_keeps_is_on_a_claim():
    claims = of_kind(demo(), "PersistentVolumeClaim")
    for pod in pods(demo()).values():
        mounted = {v["name"]: v.get("persistentVolumeClaim", {}).get("claimName") for v in pod["volumes"]}
        for container in pod["containers"]:
            kept = [m for m in container["volumeMounts"] if m["mountPath"] in ("/var/lib/skerry", "/output")]
            assert all(mounted[m["name"]] in claims for m in kept)
            assert bool(kept) == (container["name"] != "broker")


def test_claim_of_the_buffer_has_room_for_what_it_may_keep(tmp_path):
    def room(text: str) -> int:
        claim = of_kind(on(tmp_path, text), "PersistentVolumeClaim")["buffer-state"]
        return mib(claim["spec"]["resources"]["requests"]["storage"])

    assert room(SITE) > 64 + 2 * 16
    assert room(SITE.replace("67108864", str(1 << 30))) - room(SITE) == 1024 - 64


def test_probes_ask_each_module_at_its_port_and_the_broker_by_its_command():
    for name, container in containers(demo()).items():
        port = container["ports"][0]["containerPort"]
        if name == "broker":
            assert container["livenessProbe"]["exec"]["command"][-2:] == ["--mqtt", "1880"]
            continue
        paths = {
            which: container[f"{which}Probe"]["httpGet"]["path"]
            for which in ("startup", "readiness", "liveness")
        }
        assert paths == {"startup": "/healthz", "readiness": "/readyz", "liveness": "/healthz"}
        assert {container[f"{w}Probe"]["httpGet"]["port"] for w in paths} == {port}


def test_a_pod_has_the_time_that_its_slowest_container_takes_to_stop():
    slow = tuple(
        msgspec.structs.replace(c, stop_s=9) if c.name == "capture" else c for c in demo().containers
    )
    stop = {c.name: c.stop_s for c in slow}
    for name, pod in pods(msgspec.structs.replace(demo(), containers=slow)).items():
        wanted = 9 if name == "vision" else stop[name]
        assert pod["terminationGracePeriodSeconds"] == wanted


def test_there_is_never_a_second_pod_of_a_module():
    for each in of_kind(demo(), "Deployment").values():
        assert each["spec"]["replicas"] == 1
        assert each["spec"]["strategy"] == {"type": "Recreate"}


def test_selectors_hold_nothing_that_a_new_version_changes():
    its = deployment(load_site(ROOT / "sites" / "demo.yaml", here=False), "k3s", images=Images(tag="9.9.9"))
    for name, each in of_kind(its, "Deployment").items():
        assert each["spec"]["selector"] == of_kind(demo(), "Deployment")[name]["spec"]["selector"]
        assert "9.9.9" not in json.dumps(each["spec"]["selector"])
        assert each["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/version"] == "9.9.9"


# --- settings and files


def test_settings_in_a_pod_are_what_the_module_takes(tmp_path):
    """Kubernetes makes $(NAME) a value and $$ one $; what arrives must be what was meant."""
    topic = "far/$data/$(HOME)/$$/{lane}"
    its = on(tmp_path, SITE + f"link: {{kind: mqtt, host: far, topic: '{topic}'}}\n")
    [variable] = containers(its)["uplink"]["env"]
    told = parse_json(UplinkSettings, expanded(variable["value"], {}), "it")
    assert told.link.topic == topic


def expanded(text: str, variables: dict[str, str]) -> str:
    """A value as the kubelet passes it on.

    Source: https://kubernetes.io/docs/tasks/inject-data-application/define-interdependent-environment-variables/
    """

    def one(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else variables.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", one, text)


def test_a_changed_rule_of_the_broker_is_another_config_map(tmp_path):
    """So that the broker is started with it, and undoing finds the old one."""
    before, after = on(tmp_path), on(tmp_path, SITE.replace("belt", "ramp"))
    [one], [other] = of_kind(before, "ConfigMap"), of_kind(after, "ConfigMap")
    assert one != other
    for its, name in ((before, one), (after, other)):
        [volume] = [v for v in pods(its)["broker"]["volumes"] if v["name"] == "configuration"]
        assert volume["configMap"]["name"] == name
        assert of_kind(its, "ConfigMap")[name]["data"]["acl"] == acl(its.plan)


def test_package_comes_as_an_image_before_inference_starts(tmp_path):
    [init] = pods(on(tmp_path))["vision"]["initContainers"]
    assert init["image"].startswith("skerry-package-parts:")
    assert init["args"] == ["/models/parts"]
    assert "skerry-package-parts:" in image_list(on(tmp_path))


def test_secrets_are_named_with_their_keys_and_readable_by_the_pods_group(tmp_path):
    its = on(tmp_path, SITE + FAR)
    wanted = {s.name: s for s in secrets(its)}
    assert wanted["secrets-uplink"] == SecretKeys(
        name="secrets-uplink", keys={"far.txt": str(tmp_path / "far.txt")}
    )
    assert sum(s.certificates for s in wanted.values()) == 6
    for pod in pods(its).values():
        for volume in (v for v in pod["volumes"] if "secret" in v):
            assert {i["key"] for i in volume["secret"]["items"]} == wanted[volume["name"]].keys.keys()
            assert volume["secret"]["defaultMode"] == 0o440
        assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"] == 10001


def test_nobody_sees_the_certificate_of_another():
    for name, container in containers(demo()).items():
        mounted = [m["name"] for m in container["volumeMounts"] if m["name"].startswith("certificates")]
        assert mounted == [f"certificates-{name}"]


def test_a_plain_bus_needs_no_secret(tmp_path):
    assert secrets(on(tmp_path, secure=False)) == ()


def test_inputs_are_on_a_claim_that_a_pod_of_the_operator_fills(tmp_path):
    its = on(tmp_path, with_camera("{kind: file, path: belt.mp4}"))
    assert "inputs" in of_kind(its, "PersistentVolumeClaim")
    assert {m["name"]: m for m in containers(its)["capture"]["volumeMounts"]}["inputs"]["readOnly"] is True
    loader = read(render(its)[LOADER_FILE])
    assert refused(loader["spec"]) == []
    kubernetes_validate.validate(loader, VERSION, strict=True)
    assert LOADER_FILE not in render(on(tmp_path))


# --- who may talk to whom


def reach(its: Deployment, component: str) -> set[tuple[str, int]]:
    """Where a pod of a component may connect to, as the policies say."""
    found = set()
    for policy in of_kind(its, "NetworkPolicy").values():
        if "Egress" not in policy["spec"]["policyTypes"] or not chosen(
            policy["spec"]["podSelector"], component
        ):
            continue
        for rule in policy["spec"].get("egress", []):
            for to in rule.get("to", [{}]):
                labels = to.get("podSelector", {}).get("matchLabels", {})
                block = to.get("ipBlock", {}).get("cidr", "anywhere")
                where = labels.get("app.kubernetes.io/component") or labels.get("k8s-app") or block
                found |= {(where, port["port"]) for port in rule["ports"]}
    return found


def chosen(selector: Object, component: str) -> bool:
    wanted = selector.get("matchLabels", {}).get("app.kubernetes.io/component", component)
    listed = [e["values"] for e in selector.get("matchExpressions", [])]
    return wanted == component and all(component in values for values in listed)


def test_only_the_uplink_and_a_network_camera_go_outside(tmp_path):
    bus = {("broker", 8883), ("kube-dns", 53)}
    camera = with_camera("{kind: rtsp, url: 'rtsp://192.0.2.10/1'}", SITE + FAR)
    its = on(tmp_path, camera)
    assert reach(its, "vision") == bus | {("192.0.2.10/32", 554)}
    assert reach(its, "uplink") == bus | {("anywhere", 8883)}
    assert reach(its, "decision") == reach(its, "buffer") == bus
    assert reach(its, "broker") == set()
    assert reach(on(tmp_path), "uplink") == reach(on(tmp_path), "vision") == bus


@pytest.mark.parametrize(
    ("link", "where"),
    [
        ("{kind: http, url: 'https://far.example/in'}", ("anywhere", 443)),
        ("{kind: http, url: 'http://10.1.2.3:8000/'}", ("10.1.2.3/32", 8000)),
        ("{kind: http, url: 'https://far/', proxy: 'http://10.0.0.9:3128'}", ("10.0.0.9/32", 3128)),
        ("{kind: azure, websockets: true, identity: {kind: connection-string, connection_string_file: c}}",
         ("anywhere", 443)),
        ("{kind: azure, identity: {kind: connection-string, connection_string_file: c}}", ("anywhere", 8883)),
        ("{kind: aws, endpoint: x-ats.iot, tls: {certificate: a, key: b}, port: 443}", ("anywhere", 443)),
    ],
)  # fmt: skip
def test_uplink_reaches_its_far_end_and_no_other_port(tmp_path, link, where):
    its = on(tmp_path, SITE + f"link: {link}\n")
    assert reach(its, "uplink") == {("broker", 8883), ("kube-dns", 53), where}


def test_a_broker_of_the_site_is_reached_by_all_and_not_made(tmp_path):
    its = on(tmp_path, SITE + "bus: {host: 10.0.0.5}\n")
    assert "broker" not in pods(its)
    assert not of_kind(its, "ConfigMap")
    for component in ("vision", "decision", "buffer", "uplink"):
        assert ("10.0.0.5/32", 1883) in reach(its, component)


def test_nothing_comes_in_but_modules_to_the_broker():
    policies = of_kind(demo(), "NetworkPolicy")
    assert policies["default-deny"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    incoming = {name: p["spec"]["ingress"] for name, p in policies.items() if "ingress" in p["spec"]}
    [(name, [rule])] = incoming.items()
    assert name == "broker"
    assert [p["port"] for p in rule["ports"]] == [8883]
    assert all(chosen(rule["from"][0]["podSelector"], c) for c in ("vision", "decision", "buffer", "uplink"))


# --- devices


def test_camera_of_the_node_is_a_resource_of_capture_alone(tmp_path):
    its = on(tmp_path, with_camera("{kind: v4l2, device: /dev/video2, width: 640, height: 480}"))
    asked = {n: c["resources"]["limits"].get("squat.ai/video2") for n, c in containers(its).items()}
    assert {name for name, n in asked.items() if n} == {"capture"}
    assert pods(its)["vision"]["securityContext"]["supplementalGroups"] == [44]


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("/dev/video0", "squat.ai/video0"),
        ("/dev/v4l/by-id/usb-Cam_1.0:2", "squat.ai/v4l-by-id-usb-Cam-1-0-2"),
    ],
)
def test_resource_has_the_name_of_its_device(device, name):
    assert camera_resource(device) == name


@pytest.mark.parametrize(
    ("device", "resource"),
    [("cuda", "nvidia.com/gpu"), ("gpu", "gpu.intel.com/i915"), ("npu", "npu.intel.com/accel")],
)
def test_accelerator_is_a_resource_of_inference_alone(tmp_path, device, resource):
    its = on(tmp_path, SITE.replace(f"package: {PACKAGE}", f"package: {PACKAGE}, device: {device}"))
    asked = {n for n, c in containers(its).items() if resource in c["resources"]["limits"]}
    assert asked == {"inference"}
    assert pods(its)["vision"].get("runtimeClassName") == ("nvidia" if device == "cuda" else None)


def test_bound_of_the_processor_is_the_sites(tmp_path):
    its = on(tmp_path, SITE + "resources: {inference: {cpus: 0.25}}\n")
    resources = containers(its)["inference"]["resources"]
    assert (resources["limits"]["cpu"], resources["requests"]["cpu"]) == ("250m", "250m")
    assert "cpu" not in containers(its)["buffer"]["resources"]["limits"]


def test_class_of_the_device_says_which_nodes(tmp_path):
    assert "nodeSelector" not in pods(on(tmp_path))["vision"]
    its = on(tmp_path, SITE + "device: arm64-4gb\n")
    assert {p["nodeSelector"]["kubernetes.io/arch"] for p in pods(its).values()} == {"arm64"}


# --- overlays


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_overlay_is_there_for_every_site(name):
    assert f"overlays/{name}/kustomization.yaml" in demo_files()
    assert f"overlays/{name}/{IMAGES_FILE}" in demo_files()


def test_an_overlay_of_what_the_site_is_already_changes_nothing(tmp_path):
    assert "patches" not in read(demo_files()["overlays/cpu/kustomization.yaml"])
    azure = "link: {kind: azure, identity: {kind: connection-string, connection_string_file: c}}\n"
    files = render(on(tmp_path, SITE + azure))
    assert "patches" not in read(files["overlays/azure/kustomization.yaml"])


def test_a_link_that_the_site_has_for_k3s_gives_way_to_that_of_an_overlay(tmp_path):
    its = on(tmp_path, SITE + "targets: {k3s: {link: {kind: mqtt, host: far}}}\n")
    assert its.site.link.__struct_config__.tag == "mqtt"
    links = {name: variant.site.link.__struct_config__.tag for name, variant in variants(its).items()}
    assert links == dict.fromkeys(OVERLAYS, "mqtt") | {"azure": "azure", "aws": "aws"}


def test_link_overlays_take_their_secrets_by_reference():
    its = variants(demo())
    [azure] = [s for s in secrets(its["azure"]) if not s.certificates]
    assert azure.keys == {"azure-connection-string": "azure-connection-string"}
    [aws] = [s for s in secrets(its["aws"]) if not s.certificates]
    assert aws.keys.keys() == {"aws-iot.crt", "aws-iot.key", "aws-iot-endpoint"}
    [variable] = containers(its["azure"])["uplink"]["env"]
    assert isinstance(parse_json(UplinkSettings, variable["value"], "it").link, AzureLink)


def test_host_of_iot_core_comes_from_the_secret():
    endpoint, said = containers(variants(demo())["aws"])["uplink"]["env"]
    assert endpoint["valueFrom"]["secretKeyRef"] == {"name": "secrets-uplink", "key": "aws-iot-endpoint"}
    assert ENDPOINT_REFERENCE in said["value"]
    value = expanded(said["value"], {endpoint["name"]: "x-ats.iot.example"})
    link = parse_json(UplinkSettings, value, "it").link
    assert isinstance(link, AwsLink)
    assert link.endpoint == "x-ats.iot.example"


def test_device_overlays_change_the_image_of_inference_and_what_it_asks_for():
    its = {name: containers(variant)["inference"] for name, variant in variants(demo()).items()}
    assert its["nvidia"]["image"].startswith("skerry-inference-gpu:")
    assert its["intel"]["image"].startswith("skerry-inference-openvino:")
    assert its["arm64"]["image"] == its["cpu"]["image"] == containers(demo())["inference"]["image"]
    assert pods(variants(demo())["arm64"])["vision"]["nodeSelector"] == {"kubernetes.io/arch": "arm64"}


def applied(files: dict[str, str], overlay: str) -> dict[tuple[str, str], Object]:
    """What kustomize makes of an overlay, as far as ours go."""
    folder = f"overlays/{overlay}/"
    said = read(files[f"{folder}kustomization.yaml"])
    assert said["resources"][0] == "../../base"
    names = read(files["base/kustomization.yaml"])["resources"]
    texts = [files[f"base/{name}"] for name in names] + [files[folder + n] for n in said["resources"][1:]]
    found = keyed([each for text in texts for each in read_all(text)])
    for each in said.get("patches", []):
        key = each["target"]["kind"], each["target"]["name"]
        steps = read(each["patch"])
        if isinstance(steps, dict):
            assert steps["$patch"] == "delete"
            del found[key]
        else:
            found[key] = patched(found[key], steps)
    return found


def patched(document: Any, steps: list[Object]) -> Any:
    """Source: RFC 6902, for what `patch` gives."""
    document = copy.deepcopy(document)
    for step in steps:
        if not step["path"]:
            document = step["value"]
            continue
        *parents, last = [p.replace("~1", "/").replace("~0", "~") for p in step["path"].split("/")[1:]]
        place = document
        for key in parents:
            place = place[int(key)] if isinstance(place, list) else place[key]
        key = int(last) if isinstance(place, list) else last
        if step["op"] == "remove":
            del place[key]
        else:
            assert (step["op"] == "replace") == (isinstance(place, list) or key in place)
            place[key] = step["value"]
    return document


TEXT_SITES = {
    "plain": SITE,
    "far": SITE + FAR,
    "camera": with_camera("{kind: rtsp, url: 'rtsp://192.0.2.10/1'}", SITE + FAR),
    "nvidia": SITE.replace("{package:", "{device: tensorrt, package:") + "device: jetson-8gb\n",
}


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("name", TEXT_SITES)
def test_an_overlay_gives_what_rendering_its_site_would(tmp_path, name, overlay):
    its = on(tmp_path, TEXT_SITES[name])
    assert applied(render(its), overlay) == keyed(objects(variants(its)[overlay]))


documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab~/", max_size=3), inner, max_size=3)
    ),
    max_leaves=12,
)


# On a busy machine any example may take long.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(documents, documents)
def test_a_patch_makes_one_document_into_the_other(one, other):
    assert patched(one, patch(one, other)) == other
    assert patch(one, one) == []


def kustomized(folder: Path) -> dict[tuple[str, str], Object]:
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "kustomize warns of something"
    return keyed(read_all(done.stdout))


@needs.kubectl
@pytest.mark.parametrize("name", TEXT_SITES)
def test_kustomize_takes_the_base_and_every_overlay(tmp_path, name):
    """With a kubectl older than 1.21 the base alone: it cannot read overlays, which
    `test_an_overlay_gives_what_rendering_its_site_would` lays over the base by itself."""
    its = on(tmp_path, TEXT_SITES[name])
    for path, text in render(its).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    assert kustomized(tmp_path / "base") == keyed(objects(its))
    if not needs.kustomize_knows_targets():
        return
    for overlay, variant in variants(its).items():
        assert kustomized(tmp_path / "overlays" / overlay) == keyed(objects(variant)), overlay


@pytest.mark.parametrize("name", TEXT_SITES)
def test_schemas_of_kubernetes_take_every_object(tmp_path, name):
    its = on(tmp_path, TEXT_SITES[name])
    every = {json.dumps(o): o for d in (its, *variants(its).values()) for o in objects(d)}
    for each in every.values():
        kubernetes_validate.validate(each, VERSION, strict=True)


def test_schemas_of_kubernetes_refuse_a_word_that_is_none():
    wrong = copy.deepcopy(of_kind(demo(), "Deployment")["vision"])
    wrong["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


# --- files


def test_bundle_and_base_hold_the_same_objects_in_the_same_order():
    files = demo_files()
    names = read(files["base/kustomization.yaml"])["resources"]
    based = [each for name in names for each in read_all(files[f"base/{name}"])]
    assert read_all(files[BUNDLE_FILE]) == based == objects(demo())
    assert based[0]["kind"] == "Namespace"


def test_list_of_images_names_all_that_a_pod_names():
    for its in (demo(), *variants(demo()).values()):
        named = {
            c["image"] for p in pods(its).values() for c in (*p.get("initContainers", []), *p["containers"])
        }
        assert set(image_list(its).splitlines()) == named


CHANGES = {
    "fps: 5": ("fps: 6", {"vision"}),
    "[0.5, 1]]": ("[0.5, 0.9]]", {"decision"}),
    "bytes: 67108864": ("bytes: 77108864", {"buffer"}),
    f"package: {PACKAGE}": (f"threads: 1, package: {PACKAGE}", {"vision"}),
    "site: test": ("site: test\nlink: {kind: file, path: other.jsonl}", {"uplink"}),
}


@pytest.mark.parametrize("line", CHANGES)
def test_a_changed_line_changes_one_deployment_and_nothing_else(tmp_path, line):
    instead, wanted = CHANGES[line]
    assert line in SITE
    before = keyed(objects(on(tmp_path)))
    after = keyed(objects(on(tmp_path, SITE.replace(line, instead))))
    assert before.keys() == after.keys()
    changed = {key for key in before if before[key] != after[key]}
    claims = {("PersistentVolumeClaim", "buffer-state")} if wanted == {"buffer"} else set()
    assert changed == {("Deployment", name) for name in wanted} | claims
    for key in changed - claims:
        steps = patch(before[key], after[key])
        assert all("/env/" in step["path"] for step in steps)


def test_told_are_the_commands_that_make_every_secret(tmp_path, capsys):
    (tmp_path / "site.yaml").write_text(SITE + FAR, encoding="utf-8")
    assert main(["render", "k3s", str(tmp_path / "site.yaml"), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert (
        f"create secret generic secrets-uplink -n skerry-test --from-file=far.txt={tmp_path}/far.txt" in said
    )
    for name in ("broker", "capture", "inference", "decision", "buffer", "uplink"):
        assert f"generic certificates-{name} -n skerry-test --type=kubernetes.io/tls" in said
    assert not [p for p in (tmp_path / "out").rglob("*") if p.suffix == ".onnx"]


def test_readme_has_a_command_for_every_secret_of_the_examples():
    text = (ROOT / "k3s" / "README.md").read_text(encoding="utf-8")
    [loop] = re.findall(r"for name in (.*); do\n *kubectl create secret generic certificates-", text)
    for name in ("demo", "line"):
        its = deployment(load_site(ROOT / "sites" / f"{name}.yaml", here=False), "k3s")
        wanted = secrets(its)
        assert {s.name for s in wanted if s.certificates} == {f"certificates-{n}" for n in loop.split()}
        for secret in (s for s in wanted if not s.certificates):
            files = " ".join(f"--from-file={key}" for key in secret.keys)
            assert f"kubectl create secret generic {secret.name} -n skerry-{name} {files}\n" in text
    for overlay in ("azure", "aws"):
        [its_own] = [s for s in secrets(variants(demo())[overlay]) if not s.certificates]
        assert all(f"={key}" in text for key in its_own.keys)


# --- findings


def errors(its: Deployment, level: str = "error") -> list[tuple[str, str]]:
    return [(f.where, f.text) for f in findings(its) if f.level == level]


def test_a_good_site_has_no_error_and_with_registry_and_digests_no_warning(tmp_path):
    its = on(tmp_path)
    assert errors(its) == []
    names = [c.image for c in its.containers] + ["package-parts"]
    images = Images(registry="r.example", digests=dict.fromkeys(names, f"sha256:{'0' * 64}"))
    assert findings(on(tmp_path, images=images)) == []


AZURE_AUTO = "{kind: azure, identity: {kind: auto}}"
ERRORS = {
    "capitals": ("site: test", "site: Test", "$.site", "lower-case"),
    "underscore": ("site: test", "site: te_st", "$.site", "it names a namespace"),
    "long site": ("site: test", f"site: {'x' * 57}", "$.site", "at most 56"),
    "capture": ("rules:", "captures: {Capture_1: [belt]}\nrules:", "$.captures.Capture_1", "lower-case"),
    "long capture": (
        "rules:", f"captures: {{{'c' * 41}: [belt]}}\nrules:", f"$.captures.{'c' * 41}", "at most 40",
    ),
    "nucleus": ("rules:", "link: {kind: greengrass}\nrules:", "$.link.kind", "got greengrass"),
    "edge": ("rules:", f"link: {AZURE_AUTO}\nrules:", "$.link.identity", "got auto"),
    "edge here": (
        "rules:", f"targets: {{k3s: {{link: {AZURE_AUTO}}}}}\nrules:",
        "$.targets.k3s.link.identity", "got auto",
    ),
    "key": (
        "rules:", "link: {kind: mqtt, host: far, user: u, password_file: my pass}\nrules:",
        "$.link.password_file", "got 'my pass'",
    ),
    "long device": (
        "{kind: synthetic}", f"{{kind: v4l2, device: /dev/{'v' * 64}}}",
        "$.cameras[0].source.device", "at most 63",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_what_kubernetes_would_refuse_is_an_error_at_its_path(tmp_path, name):
    old, new, where, text = ERRORS[name]
    assert old in SITE
    [(found, said)] = errors(on(tmp_path, SITE.replace(old, new, 1)))
    assert found == where
    assert text in said


WARNINGS = {
    "camera of the node": (
        "{kind: synthetic}", "{kind: v4l2, device: /dev/video0}",
        "$.cameras[0].source.device", "squat.ai/video0",
    ),
    "mdns": (
        "{kind: synthetic}", "{kind: rtsp, url: 'rtsp://cam.local/1'}",
        "$.cameras[0].source.url", "cam.local",
    ),
    "mdns bus": ("rules:", "bus: {host: bus.local}\nrules:", "$.bus.host", "bus.local"),
    "mdns link": ("rules:", "link: {kind: mqtt, host: far.local}\nrules:", "$.link", "far.local"),
    "camera without password": (
        "{kind: synthetic}", "{kind: rtsp, url: 'rtsp://cam/1', user: viewer}",
        "$.cameras[0].source.password_file", "'viewer'",
    ),
    "link without password": (
        "rules:", "link: {kind: mqtt, host: far, user: me}\nrules:", "$.link.password_file", "'me'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WARNINGS)
def test_what_may_not_work_is_a_warning_at_its_path(tmp_path, name):
    old, new, where, text = WARNINGS[name]
    its = on(tmp_path, SITE.replace(old, new, 1))
    assert errors(its) == []
    assert [said for found, said in errors(its, "warning") if found == where and text in said]


def test_images_without_a_registry_or_a_digest_are_warnings(tmp_path):
    names = {c.image for c in on(tmp_path).containers}
    digests = dict.fromkeys(names, f"sha256:{'0' * 64}")
    found = errors(on(tmp_path, images=Images(digests=digests)), "warning")
    assert [where for where, _ in found] == ["--images", "--registry"]
    assert "package-parts" in found[0][1]


def test_a_tag_that_is_no_label_is_an_error(tmp_path):
    assert [where for where, _ in errors(on(tmp_path, images=Images(tag="x" * 64)))] == ["--tag"]


def test_a_package_whose_name_is_no_image_is_an_error_at_its_model(tmp_path):
    (tmp_path / "Parts").symlink_to(PACKAGE)
    its = on(tmp_path, SITE.replace(str(PACKAGE), "Parts"))
    assert [where for where, _ in errors(its)] == ["$.models[0].package"]


def test_two_packages_of_one_name_are_an_error_at_the_second(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "parts").symlink_to(PACKAGE)
    cameras = f"- {CAMERA}\n  - {CAMERA.replace('belt', 'hall')}"
    models = f"{{package: {PACKAGE}, cameras: [belt]}}\n  - {{package: other/parts, cameras: [hall]}}"
    text = SITE.replace(f"- {CAMERA}", cameras).replace(f"{{package: {PACKAGE}}}", models)
    assert [where for where, _ in errors(on(tmp_path, text))] == ["$.models[1].package"]


def test_a_name_that_two_modules_have_is_an_error(tmp_path):
    text = SITE + "captures: {decision: [belt]}\n"
    found = errors(on(tmp_path, text, secure=False))
    assert [where for where, _ in found] == ["$.captures.decision"]


def test_more_settings_than_a_variable_holds_are_an_error(tmp_path):
    site = on(tmp_path).site
    [rule] = site.rules
    many = tuple(msgspec.structs.replace(rule, name=f"r{n}") for n in range(2500))
    [(where, said)] = errors(deployment(msgspec.structs.replace(site, rules=many), "k3s"))
    assert where == "$"
    assert "of settings for decision" in said
