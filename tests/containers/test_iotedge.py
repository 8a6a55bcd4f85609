"""A site as modules of Azure IoT Edge: their `createOptions` on a real engine, as the agent passes them."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import conformance
from composed import READER, docker
from edge_agent import Device, brought, joined
from iot_hub import IotHub, WorkloadApi
from needs import ROOT
from skerry.cli import main
from skerry.deploy.contained import OUTPUT
from skerry.testing import eventually

MODULES = ("broker", "uplink", "buffer", "decision", "inference", "capture")
pytestmark = pytest.mark.timeout(600)


class Running(NamedTuple):
    """A site on a device, and the hub that its events go to, where they do."""

    device: Device
    folder: Path
    hub: IotHub | None

    def events(self) -> list[dict[str, Any]]:
        """What the far end has."""
        if self.hub is not None:
            return [json.loads(raw) for raw in self.hub.raw]
        code = (
            f"import pathlib; path = pathlib.Path('{OUTPUT}/events.jsonl')\n"
            "print(path.read_text() if path.exists() else '')"
        )
        volume = f"-v=skerry-same-output:{OUTPUT}:ro"
        text = docker("run", "--rm", "--network=none", "--entrypoint=python3", volume, READER, "-c", code)
        return conformance.parsed(text)


def written(folder: Path, link: str, name: str = "same") -> Path:
    """The rendering of the conformance site, with the files of its device, certificates too."""
    text = conformance.SITE.read_text(encoding="utf-8").replace("../models", str(ROOT / "models"))
    text = text.replace("site: same", f"site: {name}")
    site = folder / "site.yaml"
    site.write_text(f"{text}\ntargets: {{iotedge: {{link: {link}}}}}\n", encoding="utf-8")
    out = folder / "out"
    assert main(["render", "iotedge", str(site), "--out", str(out)]) == 0
    assert main(["certs", str(site), "--out", str(folder / "certificates")]) == 0
    for module in MODULES:
        shutil.copytree(folder / "certificates" / module, out / "device/certificates" / module)
    return out


@pytest.fixture(scope="module", params=["file", "azure"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("edge")
    azure = request.param == "azure"
    out = written(folder, "{kind: azure}" if azure else "{kind: file, path: events.jsonl}")
    manifest = json.loads((out / "deployment.json").read_text(encoding="utf-8"))
    with ExitStack() as stack:
        stack.enter_context(brought(out / "device", Path("/var/lib/skerry/same")))
        hub = IotHub(folder)
        workload = WorkloadApi(folder, hub.authority.ca)
        stack.callback(workload.stop)
        workload.path.chmod(0o666)  # as the daemon makes it
        device = Device(manifest, f"skerry-test-{os.getpid()}", workload.path)
        device.remove_volumes()
        stack.callback(device.remove)
        device.connect()
        if azure:
            _gateway(hub, device, workload)
            stack.callback(hub.stop)
        running = Running(device, folder, hub if azure else None)
        try:
            device.apply()
            eventually(lambda: conformance.arrived(running.events()), 240)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{device.logs()}") from error
        yield running


def _gateway(hub: IotHub, device: Device, workload: WorkloadApi) -> None:
    """Put the hub in edgeHub's place, with a certificate of that name, and tell the modules of it."""
    hub.host = device.gateway
    hub.authority.issue("server", hub.host)
    hub.start()
    told = workload.environment("hub.azure-devices.net", hub.host)
    device.told = {**told, "IOTEDGE_WORKLOADURI": "unix:///var/run/iotedge/workload.sock"}


def test_events_are_those_of_a_plain_run(site):
    conformance.same(site.events())


@pytest.mark.parametrize("site", ["azure"], indirect=True)
def test_each_lane_goes_to_the_output_of_its_route(site):
    routes = json.loads((site.folder / "out/deployment.json").read_text(encoding="utf-8"))
    hub = routes["modulesContent"]["$edgeHub"]["properties.desired"]["routes"]
    outputs = {route["route"].split("/outputs/")[1].split(" ")[0] for route in hub.values()}
    messages = list(site.hub.messages)
    sent = {(message.properties["$.on"], message.properties["lane"]) for message in messages}
    assert sent == {("alarm", "alarm"), ("event", "event")}
    assert {output for output, _ in sent} <= outputs
    assert {message.device for message in messages} == {"box/uplink"}


def test_everybody_gets_well(site):
    eventually(
        lambda: {site.device.inspect(n)["State"]["Health"]["Status"] for n in MODULES} == {"healthy"}, 90
    )


def test_containers_are_what_their_options_say(site):
    for name in MODULES:
        found = site.device.inspect(name)
        options = joined(site.device.modules[name]["settings"])
        for key in ("ReadonlyRootfs", "CapDrop", "SecurityOpt", "Memory", "MemorySwap", "PidsLimit", "Tmpfs"):
            assert found["HostConfig"][key] == options["HostConfig"][key], f"{name}: {key}"
        assert found["HostConfig"]["LogConfig"] == options["HostConfig"]["LogConfig"]
        assert found["Config"]["User"] == "10001:10001"
        assert found["Config"]["Healthcheck"]["Test"] == options["Healthcheck"]["Test"]
        assert list(found["NetworkSettings"]["Networks"]) == [site.device.network]
        assert not found["NetworkSettings"]["Ports"]


def test_modules_have_no_capability_and_cannot_write_their_root(site):
    code = (
        "print(open('/proc/1/status').read())\n"
        "try: open('/opt/skerry/x', 'w')\n"
        "except OSError as error: print(error)"
    )
    for name in MODULES:
        said = site.device.run(name, code)
        assert "CapEff:\t0000000000000000" in said
        assert "NoNewPrivs:\t1" in said
        assert "Read-only file system" in said


def test_frames_are_in_memory_and_inference_cannot_write_them(site):
    mounts = "print(*(line for line in open('/proc/mounts') if ' /frames ' in line))"
    _, _, kind, its, *_ = site.device.run("capture", mounts).split()
    assert kind == "tmpfs"
    assert {"size=15360k", "uid=10001", "noexec", "rw"} <= set(its.split(","))
    _, _, _, its, *_ = site.device.run("inference", mounts).split()
    assert "ro" in its.split(",")


def test_nothing_is_written_outside_volumes(site):
    assert {name: site.device.written(name) for name in MODULES} == {name: [] for name in MODULES}


def test_a_module_sees_its_own_certificate_and_nobody_elses(site):
    code = "import pathlib; print(sorted(p.name for p in pathlib.Path('/run/certificates').iterdir()))"
    for name in MODULES[1:]:
        assert site.device.run(name, code) == "['ca.crt', 'tls.crt', 'tls.key']\n"
        mounts = {m["Source"] for m in site.device.inspect(name)["Mounts"] if "certificates" in m["Source"]}
        assert mounts == {f"/var/lib/skerry/same/certificates/{name}"}


def test_a_module_that_is_created_anew_goes_on_with_its_state(site):
    device = site.device
    before = len(site.events())
    for name in ("buffer", "uplink"):
        device.engine.ask("POST", f"/containers/{device.prefix}-{name}/stop")
        assert device.inspect(name)["State"]["ExitCode"] == 0
        device.engine.ask("DELETE", f"/containers/{device.prefix}-{name}")
        device.create(name)
        device.engine.ask("POST", f"/containers/{device.prefix}-{name}/start")
    eventually(lambda: {device.inspect(n)["State"]["Health"]["Status"] for n in MODULES} == {"healthy"}, 90)
    assert len(site.events()) == before
    conformance.same(site.events())


def test_a_device_without_the_files_says_which_is_missing(tmp_path):
    out = written(tmp_path, "{kind: file, path: events.jsonl}", "bare")
    manifest = json.loads((out / "deployment.json").read_text(encoding="utf-8"))
    device = Device(manifest, f"skerry-test-{os.getpid()}-bare", tmp_path / "workload.sock")
    device.connect()
    try:
        with pytest.raises(AssertionError, match="/var/lib/skerry/bare/certificates/broker"):
            device.apply()
    finally:
        device.remove()
