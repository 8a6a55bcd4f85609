"""The compose file of a site: what is in it, and what a changed line of the site changes."""

import json
from functools import cache
from pathlib import Path

import pytest
import yaml

from needs import ROOT
from skerry.cli import main
from skerry.deploy.acl import acl
from skerry.deploy.compose import COMPOSE_FILE, render
from skerry.deploy.contained import contained, place
from skerry.deploy.deployment import deployment
from skerry.deploy.images import Images
from skerry.deploy.plan import Plan, plan
from skerry.deploy.site import Site, load_site
from skerry.inference.settings import InferenceSettings
from skerry.settings import parse_json

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


def site_of(folder: Path, text: str = SITE) -> Site:
    (folder / "site.yaml").write_text(text, encoding="utf-8")
    return load_site(folder / "site.yaml", here=False)


def rendered(site: Site, *, secure: bool = False, images: Images | None = None) -> dict[str, str]:
    return render(deployment(site, "compose", secure=secure, images=images))


def compose(files: dict[str, str]) -> dict:
    return yaml.safe_load(files[COMPOSE_FILE])


@cache
def demo() -> dict[str, str]:
    return rendered(load_site(ROOT / "sites" / "demo.yaml"))


def test_demo_is_rendered_as_it_was():
    """Compare with the file that people have seen; when a difference is wanted, write it anew:

    skerry render compose sites/demo.yaml --plain-bus --out DIR, and copy compose.yaml and broker/ here.
    """
    wanted = {
        str(p.relative_to(SNAPSHOT)): p.read_text(encoding="utf-8")
        for p in SNAPSHOT.rglob("*")
        if p.is_file()
    }
    assert demo() == wanted


SNAPSHOT = Path(__file__).parent / "compose_demo"


def test_the_same_site_gives_the_same_files_wherever_it_is(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    assert rendered(site_of(tmp_path)) == rendered(site_of(tmp_path / "elsewhere"))


def test_no_service_can_do_more_than_its_work():
    for name, service in compose(demo())["services"].items():
        assert service["read_only"] is True, name
        assert service["user"] == "10001:10001", name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"] == service["memswap_limit"], name
        assert service["pids_limit"] > 0, name
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert service["logging"]["options"]["max-size"], name
        assert not {"ports", "privileged", "network_mode", "ipc", "pid"} & service.keys(), name


def test_settings_in_the_file_are_what_the_module_takes():
    environment = compose(demo())["services"]["inference"]["environment"]
    settings = parse_json(InferenceSettings, environment["SKERRY_SETTINGS"].replace("$$", "$"), "it")
    assert settings.models[0].package == "/models/parts"
    assert (settings.http_host, settings.http_port) == ("0.0.0.0", 8080)


def test_a_dollar_in_the_site_is_not_a_variable_of_compose(tmp_path):
    text = SITE + "link: {kind: mqtt, host: far, topic: 'far/$data/{lane}'}\n"
    service = compose(rendered(site_of(tmp_path, text)))["services"]["uplink"]
    raw = service["environment"]["SKERRY_SETTINGS"]
    assert "$$data" in raw
    assert json.loads(raw.replace("$$", "$"))["link"]["topic"] == "far/$data/{lane}"


def test_capture_writes_frames_and_inference_only_reads_them():
    document = compose(demo())
    assert "frames:/frames" in document["services"]["capture"]["volumes"]
    assert "frames:/frames:ro" in document["services"]["inference"]["volumes"]
    assert document["volumes"]["frames"]["driver_opts"]["type"] == "tmpfs"
    others = ("decision", "buffer", "uplink", "broker")
    assert not [s for s in others if any("frames" in v for v in document["services"][s]["volumes"])]


def test_what_comes_from_the_machine_is_read_only(tmp_path):
    text = SITE + "link: {kind: mqtt, host: far, user: me, password_file: far.txt}\n"
    services = compose(rendered(site_of(tmp_path, text), secure=True))["services"]
    bound = [v for service in services.values() for v in service["volumes"] if v.startswith(".")]
    assert len(bound) == 9  # six certificates, the broker's folder, a package, a password
    assert all(volume.endswith(":ro") for volume in bound)


def test_each_stops_before_the_one_that_it_sends_to():
    services = compose(demo())["services"]
    chain = ["capture", "inference", "decision", "buffer", "uplink", "broker"]
    assert [next(iter(services[name].get("depends_on", {})), None) for name in chain] == [*chain[1:], None]


def test_only_who_has_business_outside_is_in_another_network(tmp_path):
    camera = "{name: belt, source: {kind: rtsp, url: 'rtsp://camera/1'}, fps: 5}"
    text = SITE.replace("{name: belt, source: {kind: synthetic}, fps: 5}", camera)
    document = compose(rendered(site_of(tmp_path, text + "link: {kind: mqtt, host: far}\n")))
    outside = [name for name, service in document["services"].items() if "outside" in service["networks"]]
    assert sorted(outside) == ["capture", "uplink"]
    assert document["networks"]["site"] == {"internal": True}
    assert list(compose(demo())["networks"]) == ["site"]


CHANGES = {
    "fps: 5": ("fps: 6", {"capture"}),
    "[0.5, 1]]": ("[0.5, 0.9]]", {"decision"}),
    "bytes: 67108864": ("bytes: 77108864", {"buffer"}),
    f"package: {PACKAGE}": (f"threads: 1, package: {PACKAGE}", {"inference"}),
    "site: test": ("site: test\nlink: {kind: file, path: other.jsonl}", {"uplink"}),
}


@pytest.mark.parametrize("line", CHANGES)
def test_a_changed_line_changes_the_settings_of_one_service_and_nothing_else(tmp_path, line):
    instead, wanted = CHANGES[line]
    assert line in SITE
    before = rendered(site_of(tmp_path))
    after = rendered(site_of(tmp_path, SITE.replace(line, instead)))
    one, other = compose(before), compose(after)
    changed = {name for name in one["services"] if one["services"][name] != other["services"][name]}
    assert changed == wanted
    for name in changed:
        for document in (one, other):
            document["services"][name].pop("environment")
    assert one == other
    assert {n: t for n, t in before.items() if n != COMPOSE_FILE} == {
        n: t for n, t in after.items() if n != COMPOSE_FILE
    }


def test_larger_pictures_need_more_room_and_nothing_else(tmp_path):
    before = compose(rendered(site_of(tmp_path)))
    large = SITE.replace("kind: synthetic", "kind: synthetic, width: 1920, height: 1080")
    after = compose(rendered(site_of(tmp_path, large)))
    assert "size=15m" in before["volumes"]["frames"]["driver_opts"]["o"]
    assert "size=95m" in after["volumes"]["frames"]["driver_opts"]["o"]
    assert before["services"]["capture"]["mem_limit"] == "399m"
    assert after["services"]["capture"]["mem_limit"] == "479m"
    assert [n for n in before["services"] if before["services"][n] != after["services"][n]] == ["capture"]


@pytest.mark.parametrize(
    ("model", "image"),
    [
        ("runtime: auto", "inference-cpu"),
        ("runtime: openvino", "inference-openvino"),
        ("runtime: openvino, device: npu", "inference-openvino"),
        ("runtime: onnxruntime, device: tensorrt", "inference-gpu"),
    ],
)
def test_image_has_the_runtime_that_the_model_asks_for(tmp_path, model, image):
    text = SITE.replace(f"package: {PACKAGE}", f"package: {PACKAGE}, {model}")
    service = compose(rendered(site_of(tmp_path, text)))["services"]["inference"]
    assert service["image"].startswith(f"skerry-{image}:")


def test_azure_link_has_the_image_with_azures_client(tmp_path):
    text = SITE + "link: {kind: azure, identity: {kind: auto}}\n"
    service = compose(rendered(site_of(tmp_path, text)))["services"]["uplink"]
    assert service["image"].startswith("skerry-uplink-azure:")


def test_images_are_named_by_registry_tag_and_digest(tmp_path):
    digest = f"sha256:{'0' * 64}"
    images = Images(registry="r.example/site/", tag="1.2", digests={"buffer": digest})
    services = compose(rendered(site_of(tmp_path), images=images))["services"]
    assert services["decision"]["image"] == "r.example/site/skerry-decision:1.2"
    assert services["buffer"]["image"] == f"r.example/site/skerry-buffer:1.2@{digest}"


def test_camera_of_the_machine_is_a_device_of_capture_alone(tmp_path):
    camera = "{kind: v4l2, device: /dev/video2, width: 640, height: 480}"
    services = compose(rendered(site_of(tmp_path, SITE.replace("{kind: synthetic}", camera))))["services"]
    assert services["capture"]["devices"] == ["/dev/video2:/dev/video2"]
    assert services["capture"]["group_add"] == ["video"]
    assert [name for name, service in services.items() if "devices" in service] == ["capture"]


def test_accelerator_is_a_device_of_inference_alone(tmp_path):
    text = SITE.replace(f"package: {PACKAGE}", f"package: {PACKAGE}, runtime: openvino, device: gpu")
    services = compose(rendered(site_of(tmp_path, text)))["services"]
    assert services["inference"]["devices"] == ["/dev/dri:/dev/dri"]
    assert [name for name, service in services.items() if "devices" in service] == ["inference"]


def the_plan(site: Site) -> Plan:
    inside, _ = contained(site)
    return plan(inside, place(inside, secure=True))


def test_on_a_secure_bus_each_sees_its_own_certificate_and_nobody_elses(tmp_path):
    site = site_of(tmp_path)
    files = rendered(site, secure=True)
    services = compose(files)["services"]
    for name, service in services.items():
        mounted = [v for v in service["volumes"] if "certificates" in v]
        assert mounted == [f"./certificates/{name}:/run/certificates:ro"], name
    assert files["broker/acl"] == acl(the_plan(site))
    lines = files["broker/mosquitto.conf"].splitlines()
    assert {"listener 8883", "require_certificate true", "acl_file /etc/skerry/acl"} <= set(lines)
    assert [line for line in lines if line.startswith("listener")] == [
        "listener 8883",
        "listener 1880 127.0.0.1",
    ]


def test_a_site_with_a_broker_of_its_own_gets_none(tmp_path):
    files = rendered(site_of(tmp_path, SITE + "bus: {host: 10.0.0.5}\n"))
    assert list(files) == [COMPOSE_FILE]
    services = compose(files)["services"]
    assert "broker" not in services
    assert all("outside" in service["networks"] for service in services.values())


def test_no_secret_lands_in_a_file(tmp_path, capsys):
    (tmp_path / "far.txt").write_text("hunter2", encoding="utf-8")
    site_of(tmp_path, SITE + "link: {kind: mqtt, host: far, user: me, password_file: far.txt}\n")
    out = tmp_path / "out"
    assert main(["render", "compose", str(tmp_path / "site.yaml"), "--out", str(out)]) == 0
    written = [p for p in out.rglob("*") if p.is_file()]
    assert out / "models/parts/model.onnx" in written
    assert not [p for p in written if b"hunter2" in p.read_bytes()]
    assert f"secrets/far.txt: put {tmp_path}/far.txt there" in capsys.readouterr().out


def test_rendering_again_replaces_the_package(tmp_path):
    site_of(tmp_path)
    out = tmp_path / "out"
    for _ in range(2):
        assert main(["render", "compose", str(tmp_path / "site.yaml"), "--out", str(out)]) == 0
        assert not (out / "models/parts/left-over").exists()
        (out / "models/parts/left-over").touch()


def test_a_wrong_site_is_refused_with_its_path(tmp_path, capsys):
    (tmp_path / "site.yaml").write_text(SITE.replace("fps: 5", "fps: -5"), encoding="utf-8")
    code = main(["render", "compose", str(tmp_path / "site.yaml"), "--out", str(tmp_path / "out")])
    assert code == 78
    assert "$.cameras[0].fps: expected a number above 0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
