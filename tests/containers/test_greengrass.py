"""A site as components of Greengrass: each recipe's scripts on a real engine, as either nucleus runs them."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

import conformance
from composed import DOCKER, READER, docker
from greengrass_core import PATIENCE_S, Core, allowed
from greengrass_ipc import Nucleus
from needs import ROOT
from skerry.batches import decode
from skerry.cli import main
from skerry.deploy.contained import USER
from skerry.deploy.greengrass_recipe import Variant
from skerry.testing import eventually

MODULES = ("broker", "uplink", "buffer", "decision", "inference", "capture")
NAME = f"skerry-test-{os.getpid()}-gg"
GROUP = 54_321
"""A group that nobody is in: whose the nucleus' socket is."""
pytestmark = pytest.mark.timeout(1200)


def rendered(folder: Path, link: str, text: str = "") -> Path:
    """The rendering of the conformance site, packages packed as the command says, certificates beside."""
    site = folder / "site.yaml"
    given = text or conformance.SITE.read_text(encoding="utf-8").replace("../models", str(ROOT / "models"))
    site.write_text(f"{given}\ntargets: {{greengrass: {{link: {link}}}}}\n", encoding="utf-8")
    out = folder / "out"
    assert main(["render", "greengrass", str(site), "--out", str(out)]) == 0
    site_name = yaml.safe_load(site.read_text(encoding="utf-8"))["site"]
    for variant, prefix in (("nucleus", "skerry"), ("lite", "skerry-lite")):
        packed = f"../../{variant}/artifacts/{prefix}.{site_name}.inference/1.0.0/parts.zip"
        pack = f"python3 -m zipfile -c {packed} *"  # as the command tells
        subprocess.run(["/bin/sh", "-c", pack], cwd=out / "models/parts", check=True)
    certificates = folder / "device" / "certificates"
    assert main(["certs", str(site), "--out", str(certificates)]) == 0
    for path in (certificates, *certificates.rglob("*")):
        shutil.chown(path, USER, USER)
    return out


@contextmanager
def core(folder: Path, variant: Variant, link: str, text: str = "") -> Iterator[Core]:
    """A core device with the site's components on it; nothing runs yet."""
    out = rendered(folder, link, text)
    device = Core(out, variant, folder / "root", {"folder": str(folder / "device")}, NAME)
    try:
        yield device
    finally:
        device.clear()


def delivered() -> list[dict[str, Any]]:
    """What the file link has written: the engine's volumes are folders of this machine."""
    if f"{NAME}-output" not in docker("volume", "ls", "--format", "{{.Name}}").split():
        return []
    folder = Path(docker("volume", "inspect", "-f", "{{.Mountpoint}}", f"{NAME}-output").strip())
    file = folder / "events.jsonl"
    return conformance.parsed(file.read_text(encoding="utf-8")) if file.exists() else []


def inspected(device: Core, module: str) -> dict[str, Any]:
    [found] = json.loads(docker("inspect", device.container(module)))
    return found


def assert_confined(device: Core) -> None:
    for module in MODULES:
        found = inspected(device, module)
        host = found["HostConfig"]
        assert host["ReadonlyRootfs"] is True
        assert host["CapDrop"] == ["ALL"]
        assert host["SecurityOpt"] == ["no-new-privileges"]
        assert 0 < host["Memory"] == host["MemorySwap"]
        assert host["PidsLimit"] > 0
        assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-file": "3", "max-size": "10m"}}
        assert host["Tmpfs"] == {"/tmp": "size=16m,mode=1777,noexec,nosuid,nodev"}
        assert found["Config"]["User"] == "10001:10001"
        assert list(found["NetworkSettings"]["Networks"]) == [NAME]
        assert not host["PortBindings"]
    [network] = json.loads(docker("network", "inspect", NAME))
    assert network["Internal"] is True


@pytest.fixture(params=["file", "greengrass"])
def link(request: pytest.FixtureRequest) -> str:
    return request.param


def test_on_lite_the_run_scripts_give_the_events_of_a_plain_run(link, tmp_path):
    given = "{kind: file, path: events.jsonl}" if link == "file" else "{kind: greengrass, timeout_s: 60}"
    with core(tmp_path, "lite", given) as device, Nucleus() as nucleus:
        nucleus.max_packet = 10_000
        events = delivered
        if link == "greengrass":
            nucleus.allow = allowed(device.recipes["uplink"])
            nucleus.configuration = {"desired": {}}
            nucleus.socket.chmod(0o660)
            shutil.chown(nucleus.socket, "root", GROUP)
            device.environment = nucleus.environment

            def events() -> list[dict[str, Any]]:
                batches = [item.payload for item in list(nucleus.cloud) if "/far/" in item.topic]
                return [json.loads(bytes(raw)) for batch in batches for raw in decode(batch)]

        # Lite starts them in any order.
        processes = {module: device.begin(module) for module in reversed(MODULES)}
        eventually(lambda: len(device.left()["containers"]) == len(MODULES), 120)
        eventually(lambda: conformance.arrived(events()), 400)
        assert_confined(device)
        codes = {module: device.end(processes[module]) for module in reversed(MODULES)}
        assert codes == dict.fromkeys(MODULES, 0)
        conformance.same(events())
        assert device.left()["containers"] == []
        if link == "greengrass":
            assert not nucleus.errors
            assert "not authorized" not in (device.root / "uplink.log").read_text(encoding="utf-8")
            assert any(item.topic == "skerry/same/remote/reported" for item in nucleus.cloud)
            assert nucleus.asked.count("SubscribeToTopic") == 1


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Core]:
    folder = tmp_path_factory.mktemp("nucleus")
    with core(folder, "nucleus", "{kind: file, path: events.jsonl}") as device:
        for module in MODULES:
            done = device.do(module, "startup")
            assert done.returncode == 0, f"{module}: {done.stderr}"
        yield device


def test_startup_ends_well_when_the_module_is_well_and_the_events_are_those_of_a_plain_run(started):
    for module in MODULES:
        state = inspected(started, module)["State"]
        assert state["Running"] is True
        assert inspected(started, module)["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
    assert_confined(started)
    eventually(lambda: conformance.arrived(delivered()), 400)
    conformance.same(delivered())


def test_startup_replaces_what_a_run_before_left(started):
    before = inspected(started, "buffer")["Id"]
    assert started.do("buffer", "startup").returncode == 0
    assert inspected(started, "buffer")["Id"] != before


def broken(device: Core, module: str, change: dict[str, Any]) -> Path:
    """The module's settings with something else in them; what they were is beside."""
    path = device.artifacts(module) / "settings.json"
    kept = path.with_suffix(".good")
    kept.write_bytes(path.read_bytes())
    path.write_text(json.dumps(json.loads(path.read_bytes()) | change), encoding="utf-8")
    return kept


def test_startup_fails_at_once_when_the_module_ends_and_recover_leaves_nothing_of_it(started):
    kept = broken(started, "decision", {"bus": "none"})
    try:
        began = time.monotonic()
        done = started.do("decision", "startup")
        assert done.returncode == 1
        assert time.monotonic() - began < PATIENCE_S  # it does not wait for what has ended
        assert "decision: expected it to get well" in done.stderr
        assert "$.bus" in done.stderr
        assert started.container("decision") not in started.left()["containers"]
        assert started.do("decision", "recover").returncode == 0
    finally:
        kept.replace(kept.with_suffix(".json"))
    assert started.do("decision", "startup").returncode == 0


def test_startup_fails_in_its_time_when_the_module_runs_and_does_not_get_well(started):
    kept = broken(started, "decision", {"http_port": 9999})
    try:
        done = started.do("decision", "startup", wait_s=5)
        assert done.returncode == 1
        assert "expected it to get well" in done.stderr
        assert started.container("decision") not in started.left()["containers"]
    finally:
        kept.replace(kept.with_suffix(".json"))


def test_recover_removes_a_container_that_runs(started):
    assert started.do("decision", "startup").returncode == 0
    assert started.do("decision", "recover").returncode == 0
    assert started.container("decision") not in started.left()["containers"]
    assert started.do("decision", "recover").returncode == 0


def test_startup_fails_when_a_certificate_is_missing(started, tmp_path):
    folder = Path(started.step("decision", "startup")[1]["SKERRY_FOLDER"])
    (folder / "certificates/decision").rename(tmp_path / "decision")
    try:
        done = started.do("decision", "startup")
        assert done.returncode != 0
        assert "certificates/decision" in done.stderr
    finally:
        (tmp_path / "decision").rename(folder / "certificates/decision")
    assert started.do("decision", "startup").returncode == 0


def test_shutdown_leaves_the_state_and_nothing_else(started):
    """Last of those that use the started site."""
    for module in reversed(MODULES):
        assert started.do(module, "shutdown").returncode == 0
    state = sorted(f"{NAME}-{module}-state" for module in MODULES if module != "broker")
    assert started.left() == {"containers": [], "networks": [], "volumes": sorted([*state, f"{NAME}-output"])}
    assert started.do("broker", "shutdown").returncode == 0


HOSTILE = """it's "quoted" $HOME `id` $(id) \\ %s {artifacts:path} {a.b:configuration:/x}
\ttwo lines; rm -rf "$0" & 'x' ${HOME:-x} <b> é 🦫 */"""


@pytest.mark.parametrize("variant", ["nucleus", "lite"])
def test_settings_arrive_as_they_are_whatever_is_in_them(variant, tmp_path):
    site = yaml.safe_load(conformance.SITE.read_text(encoding="utf-8"))
    site["models"] = [{"package": str(ROOT / "models/parts")}]
    site.pop("link")
    link = json.dumps({"kind": "mqtt", "host": "far.invalid", "user": HOSTILE}, ensure_ascii=False)
    with core(tmp_path, variant, link, yaml.safe_dump(site)) as device:
        script, environment, _ = device.step("uplink", "startup" if variant == "nucleus" else "run")
        # The start alone: this far end is never there. A network beside the site's own is made for it.
        begin = "docker start" if variant == "nucleus" else "exec docker start"
        script = script[: script.index(begin)]
        subprocess.run(["/bin/sh", "-c", script], env=environment, check=True, capture_output=True, text=True)
        found = inspected(device, "uplink")
        raw = dict(line.split("=", 1) for line in found["Config"]["Env"])["SKERRY_SETTINGS"]
        assert json.loads(raw)["link"]["user"] == HOSTILE
        assert sorted(found["NetworkSettings"]["Networks"]) == [NAME, f"{NAME}-outside"]


def far_end() -> str:
    """The address of somebody in the world outside, who listens on port 8000."""
    name, network = f"{NAME}-far", f"{NAME}-outside"
    server = ["--entrypoint=python3", READER, "-m", "http.server"]
    docker("run", "--detach", "--rm", "--name", name, "--network", network, *server)
    [found] = json.loads(docker("inspect", name))
    return str(found["NetworkSettings"]["Networks"][network]["IPAddress"])


def reaches(device: Core, module: str, address: str, port: int) -> bool:
    """Whether a container gets through to somebody."""
    code = f"import socket; socket.create_connection(({address!r}, {port}), 3)"
    command = [DOCKER, "exec", device.container(module), "python3", "-c", code]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_on_lite_only_who_has_business_outside_gets_there_and_it_drains_when_it_is_stopped(tmp_path):
    with core(tmp_path, "lite", "{kind: mqtt, host: far.invalid}") as device:
        processes = {module: device.begin(module) for module in ("uplink", "buffer", "broker")}
        for module in ("uplink", "buffer"):
            log = device.root / f"{module}.log"
            eventually(lambda log=log: "bus.connected" in log.read_text(encoding="utf-8"), 90)
        far = far_end()
        eventually(lambda: reaches(device, "uplink", far, 8000), 30)
        assert not reaches(device, "buffer", far, 8000)
        assert {m: device.end(process) for m, process in processes.items()} == dict.fromkeys(processes, 0)
        assert device.left()["containers"] == [f"{NAME}-far"]
