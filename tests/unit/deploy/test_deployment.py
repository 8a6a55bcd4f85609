"""A site on a platform in neutral terms: what each container is given, and what a platform would refuse."""

from pathlib import Path

import msgspec
import pytest

from needs import ROOT
from skerry.capture.settings import CaptureSettings
from skerry.cli import main
from skerry.deploy.deployment import Deployment, deployment
from skerry.deploy.images import Images
from skerry.deploy.site import Site, load_site
from skerry.deploy.targets import TARGETS, findings
from skerry.kinds import NAMES, kind_of
from skerry.settings import compact, parse, parse_json
from skerry.updater.settings import SlotSettings
from skerry.uplink.settings import FileLink

SITE = f"""
site: test
cameras:
  - {{name: belt, source: {{kind: synthetic}}, fps: 5}}
models:
  - {{package: {ROOT / "models" / "parts"}}}
"""


def site_of(folder: Path, text: str = "") -> Site:
    (folder / "site.yaml").write_text(SITE + text, encoding="utf-8")
    return load_site(folder / "site.yaml", here=False)


def on(folder: Path, target: str = "compose", text: str = "", **said: object) -> Deployment:
    return deployment(site_of(folder, text), target, **said)


def errors(its: Deployment) -> list[tuple[str, str]]:
    return [(f.where, f.text) for f in findings(its) if f.level == "error"]


@pytest.mark.parametrize("name", ["demo", "bottles", "faces", "people", "rtsp"])
def test_what_a_container_is_told_is_what_its_module_is_set_to(name, tmp_path):
    arguments = {"package": str(ROOT / "models" / "parts"), "video": "v.mp4", "secrets": str(tmp_path)}
    path = ROOT / "sites" / f"{name}.yaml"
    declared = path.read_text(encoding="utf-8")
    given = {key: value for key, value in arguments.items() if f"  {key}: {{" in declared}
    text = (
        declared.replace("[person]", "[bolt]")
        .replace("[car]", "[nut]")
        .replace("[face]", "[bolt]")
        .replace("[bottle]", "[nut]")
    )
    (tmp_path / "site.yaml").write_text(text.replace("../models", str(ROOT / "models")), encoding="utf-8")
    its = deployment(load_site(tmp_path / "site.yaml", given, here=False), "compose")
    for container in its.containers:
        if container.settings is not None:
            kind = type(container.settings)
            assert parse_json(kind, container.environment["SKERRY_SETTINGS"], "it") == container.settings


@pytest.mark.parametrize("kind", NAMES)
def test_compact_settings_say_no_default(kind):
    settings_type = kind_of(kind).settings
    given = {
        "site": "s", "module": "m", "state": "/s", "frames": "/f", "cameras": (), "models": (),
        "link": FileLink(path="x"), "store": "/m", "root": "/r",
        "slots": {"belt": SlotSettings(model="parts")},
    }  # fmt: skip
    names = {field.name for field in msgspec.structs.fields(settings_type) if field.required}
    assert set(compact(settings_type(**{name: given[name] for name in names}))) == names


def test_compact_keeps_the_kind_of_what_can_be_several(tmp_path):
    [capture] = on(tmp_path).of("capture")
    assert capture.settings is not None
    raw = compact(capture.settings)
    assert raw["cameras"][0]["source"] == {"kind": "synthetic"}
    assert parse(CaptureSettings, raw, "it") == capture.settings


def test_a_platform_can_have_a_link_of_its_own(tmp_path):
    text = "targets: {k3s: {link: {kind: mqtt, host: far, password_file: far.txt, user: me}}}\n"
    [there] = on(tmp_path, "k3s", text).of("uplink")
    [here] = on(tmp_path, "compose", text).of("uplink")
    assert there.settings.link.host == "far"
    assert [m.outside for m in there.mounts] == [str(tmp_path / "far.txt")]
    assert here.settings.link.path == "/output/events.jsonl"
    assert not here.mounts


def test_containers_of_one_pod_have_ports_of_their_own(tmp_path):
    its = on(tmp_path, "k3s")
    ports = {c.name: c.port for c in its.containers if c.kind != "broker"}
    assert ports["capture"] != ports["inference"]
    assert {c.port for c in on(tmp_path, "compose").containers if c.kind != "broker"} == {8080}
    for container in its.containers[1:]:
        assert container.health[-1] == str(container.settings.http_port)


def test_bounds_of_the_site_are_those_of_its_containers(tmp_path):
    text = "resources: {inference: {memory_mb: 999, cpus: 1.5}, broker: {memory_mb: 64}}\n"
    its = {c.name: c for c in on(tmp_path, text=text).containers}
    assert (its["inference"].memory_mb, its["inference"].cpus, its["broker"].memory_mb) == (999, 1.5, 64)
    assert its["buffer"].memory_mb == 256


def test_more_memory_than_the_device_has_is_an_error(tmp_path):
    text = "device: arm64-4gb\nresources: {buffer: {memory_mb: 3000}}\n"
    [(where, said)] = errors(on(tmp_path, text=text))
    assert where == "$.resources"
    assert "expected at most the 2880 MiB" in said
    assert "buffer 3000" in said


def test_an_accelerator_that_the_device_lacks_is_an_error_at_its_model(tmp_path):
    text = SITE.replace("parts}", "parts, device: cuda}") + "device: amd64-intel\n"
    (tmp_path / "site.yaml").write_text(text, encoding="utf-8")
    its = deployment(load_site(tmp_path / "site.yaml", here=False), "compose")
    assert [where for where, _ in errors(its)] == ["$.models[0].device"]


def test_more_cores_than_the_device_has_is_an_error(tmp_path):
    text = "device: arm64-4gb\nresources: {inference: {cpus: 5}}\n"
    assert [where for where, _ in errors(on(tmp_path, text=text))] == ["$.resources.inference.cpus"]


def test_a_class_that_nobody_knows_is_an_error(tmp_path):
    assert [where for where, _ in errors(on(tmp_path, text="device: toaster\n"))] == ["$.device"]


def test_a_camera_device_that_two_open_is_an_error(tmp_path):
    cameras = "  - {name: a, source: {kind: v4l2, device: /dev/video0}}\n" * 2
    text = SITE.replace("models:", cameras.replace("name: a", "name: b", 1) + "models:")
    (tmp_path / "site.yaml").write_text(text, encoding="utf-8")
    its = deployment(load_site(tmp_path / "site.yaml", here=False), "compose")
    assert [where for where, _ in errors(its)] == ["$.cameras[2].source.device"]


def test_a_password_in_an_address_is_an_error_that_does_not_repeat_it(tmp_path):
    camera = "  - {name: gate, source: {kind: rtsp, url: 'rtsp://me:hunter2@192.0.2.1/1'}}\n"
    (tmp_path / "site.yaml").write_text(SITE.replace("models:", f"{camera}models:"), encoding="utf-8")
    its = deployment(load_site(tmp_path / "site.yaml", here=False), "compose")
    [(where, said)] = errors(its)
    assert where == "$.cameras[1].source.url"
    assert "hunter2" not in said


def test_an_image_called_latest_is_an_error_and_one_without_digest_a_warning(tmp_path):
    assert [where for where, _ in errors(on(tmp_path, images=Images(tag="latest")))] == ["--tag"]
    its = on(tmp_path)
    assert [f.where for f in findings(its)] == ["--images"]
    names = {c.image for c in its.containers}
    pinned = on(tmp_path, images=Images(digests=dict.fromkeys(names, f"sha256:{'0' * 64}")))
    assert not findings(pinned)


@pytest.mark.parametrize(
    ("images", "where"),
    [
        (Images(tag=""), "--tag"), (Images(tag="-1"), "--tag"), (Images(tag="1:2"), "--tag"),
        (Images(registry="https://r.example"), "--registry"), (Images(registry="R.example"), "--registry"),
    ],
)  # fmt: skip
def test_an_image_that_nobody_can_be_called_is_an_error(tmp_path, images, where):
    assert [at for at, _ in errors(on(tmp_path, images=images))] == [where]


def test_registries_have_ports_and_paths(tmp_path):
    for registry in ("registry.example", "registry.example:5000", "10.0.0.1:5000/a/b_c/d-e", "r.example/x/"):
        assert not errors(on(tmp_path, images=Images(registry=registry)))


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("bus: {host: localhost}\n", "$.bus.host"),
        ("link: {kind: mqtt, host: 127.0.0.1}\n", "$.link.host"),
        ("link: {kind: http, url: 'http://[::1]:8080/events'}\n", "$.link.url"),
        ("targets: {compose: {link: {kind: mqtt, host: localhost}}}\n", "$.targets.compose.link.host"),
    ],
)
def test_an_address_that_is_the_container_itself_is_an_error(tmp_path, text, where):
    assert [at for at, _ in errors(on(tmp_path, text=text))] == [where]


def test_a_camera_that_would_be_the_container_itself_is_an_error(tmp_path):
    camera = "{kind: rtsp, url: 'rtsp://localhost:8554/a'}"
    (tmp_path / "site.yaml").write_text(SITE.replace("{kind: synthetic}", camera), encoding="utf-8")
    its = deployment(load_site(tmp_path / "site.yaml", here=False), "compose")
    assert [where for where, _ in errors(its)] == ["$.cameras[0].source.url"]


@pytest.mark.parametrize("target", TARGETS)
def test_check_says_what_a_site_amounts_to_on_a_target(target, capsys):
    assert main(["check", str(ROOT / "sites" / "demo.yaml"), "--target", target]) == 0
    assert f"no errors on {target}" in capsys.readouterr().out


@pytest.mark.parametrize("target", TARGETS)
def test_check_and_render_refuse_what_a_target_would(target, tmp_path, capsys):
    site_of(tmp_path, "device: toaster\n")
    path = str(tmp_path / "site.yaml")
    assert main(["check", path, "--target", target]) == 78
    assert main(["render", target, path, "--out", str(tmp_path / "out")]) == 78
    assert "site.yaml: $.device: expected one of" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", ""),
        ('{"buffer": "sha256:%s"}' % ("0" * 64), ""),
        ('{"buffer": "sha256:12"}', "expected digests like"),
        ("[1]", "expected JSON with digests"),
        ("nonsense", "expected JSON with digests"),
    ],
)
def test_digests_come_from_a_file(tmp_path, capsys, content, said):
    site_of(tmp_path)
    (tmp_path / "digests.json").write_text(content, encoding="utf-8")
    asked = [
        "check",
        str(tmp_path / "site.yaml"),
        "--target",
        "compose",
        "--images",
        str(tmp_path / "digests.json"),
    ]
    assert main(asked) == (78 if said else 0)
    assert said in capsys.readouterr().err
