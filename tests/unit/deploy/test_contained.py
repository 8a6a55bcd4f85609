"""Which files a site's containers see, and where."""

from pathlib import Path

from needs import ROOT
from skerry.buffer.settings import BufferSettings
from skerry.capture.settings import FileSource, RtspSource
from skerry.deploy.contained import Mount, contained, mounts_of, place
from skerry.deploy.plan import Plan, plan
from skerry.deploy.site import Site, load_site
from skerry.uplink.settings import MqttLink

PACKAGE = ROOT / "models" / "parts"


def site_of(folder: Path, more: str = "", cameras: str = "{name: belt, source: {kind: synthetic}}") -> Site:
    text = f"site: test\ncameras:\n  - {cameras}\nmodels:\n  - package: {PACKAGE}\n{more}"
    (folder / "site.yaml").write_text(text, encoding="utf-8")
    return load_site(folder / "site.yaml", here=False)


def planned(site: Site, *, secure: bool = False) -> tuple[Plan, tuple[Mount, ...]]:
    inside, mounts = contained(site)
    return plan(inside, place(inside, secure=secure)), mounts


def test_model_package_is_mounted_into_inference_alone(tmp_path):
    the_plan, mounts = planned(site_of(tmp_path))
    assert mounts == (Mount(role="models", name="parts", outside=str(PACKAGE)),)
    assert [p.kind for p in the_plan.parts if mounts_of(p, mounts)] == ["inference"]
    assert the_plan.of("inference")[0].settings.models[0].package == "/models/parts"


def test_passwords_are_secrets_and_videos_are_inputs(tmp_path):
    cameras = (
        "{name: a, source: {kind: file, path: belt.mp4}}\n"
        "  - {name: b, source: {kind: rtsp, url: 'rtsp://camera/1', user: me, password_file: camera.txt}}"
    )
    link = "link: {kind: mqtt, host: far, user: me, password_file: far/camera.txt}\n"
    site, mounts = contained(site_of(tmp_path, link, cameras))
    assert [(m.role, m.name) for m in mounts] == [
        ("models", "parts"), ("inputs", "belt.mp4"), ("secrets", "camera.txt"), ("secrets", "camera-2.txt"),
    ]  # fmt: skip
    first, second = (c.source for c in site.cameras)
    assert isinstance(first, FileSource)
    assert first.path == "/inputs/belt.mp4"
    assert isinstance(second, RtspSource)
    assert second.password_file == "/run/secrets/camera.txt"
    assert isinstance(site.link, MqttLink)
    assert site.link.password_file == "/run/secrets/camera-2.txt"


def test_a_module_sees_only_the_secrets_that_its_own_settings_name(tmp_path):
    more = (
        "buffer: {key_file: new.key, old_key_files: [old.key, older.key]}\n"
        "link: {kind: mqtt, host: far, user: me, password_file: far.txt}\n"
    )
    the_plan, mounts = planned(site_of(tmp_path, more))
    seen = {p.module: [m.name for m in mounts_of(p, mounts)] for p in the_plan.parts}
    assert seen == {
        "capture": [], "inference": ["parts"], "decision": [], "buffer": ["new.key", "old.key", "older.key"],
        "uplink": ["far.txt"],
    }  # fmt: skip
    settings = the_plan.of("buffer")[0].settings
    assert isinstance(settings, BufferSettings)
    assert settings.old_key_files == ("/run/secrets/old.key", "/run/secrets/older.key")


def test_one_file_that_two_name_is_mounted_once(tmp_path):
    one = "source: {kind: rtsp, url: 'rtsp://camera/1', user: me, password_file: camera.txt}"
    cameras = f"{{name: a, {one}}}\n  - {{name: b, {one}}}"
    _, mounts = contained(site_of(tmp_path, cameras=cameras))
    assert [m.name for m in mounts if m.role == "secrets"] == ["camera.txt"]


def test_a_broker_that_the_site_names_is_the_one_that_modules_meet(tmp_path):
    the_plan, _ = planned(site_of(tmp_path, "bus: {host: 10.0.0.5}\n"), secure=True)
    assert {(p.settings.bus.host, p.settings.bus.port, p.settings.bus.tls) for p in the_plan.parts} == {
        ("10.0.0.5", 1883, None)
    }


def test_on_a_secure_bus_everybody_has_the_certificate_that_is_mounted(tmp_path):
    the_plan, _ = planned(site_of(tmp_path), secure=True)
    assert {p.settings.bus.port for p in the_plan.parts} == {8883}
    assert {p.settings.bus.tls.key for p in the_plan.parts if p.settings.bus.tls} == {
        "/run/certificates/tls.key"
    }
