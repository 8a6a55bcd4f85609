"""The demo site as containers, started from the generated compose file: `make test-containers`."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

import conformance
from composed import DOCKER, READER, Composed, composed, docker
from needs import ROOT
from skerry.deploy.account import camera_ledger, event_ledger
from skerry.ledger import balanced
from skerry.testing import eventually

DEMO = ROOT / "sites" / "demo.yaml"
SERVICES = ("broker", "uplink", "buffer", "decision", "inference", "capture")
pytestmark = pytest.mark.timeout(600)


def assert_balanced(site: Composed) -> None:
    """Stop in the order of the flow, and add up what everybody has counted."""
    site.compose("stop")
    codes = {name: site.state(name)["ExitCode"] for name in SERVICES}
    assert codes == dict.fromkeys(SERVICES, 0)
    counts = site.counts()
    camera = camera_ledger(site.plan, "belt", {}, counts, died=False)
    events = event_ledger(site.plan, {}, counts)
    assert balanced({"belt": camera}, events), f"{camera} {events}"
    assert camera.captured > 0
    far = site.delivered()
    assert len({event["id"] for event in far}) == len(far) == events.delivered


def flows(site: Composed, more: int = 2) -> None:
    """Wait until events that were decided from now on have been delivered."""
    goal = site.count("decision", "decided") + more
    eventually(lambda: site.count("buffer", "delivered") >= goal, 120)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "secure"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    with composed(DEMO, tmp_path_factory.mktemp("site"), secure=request.param) as running:
        flows(running)
        yield running


def test_everybody_gets_well(site):
    eventually(lambda: {site.state(n)["Health"]["Status"] for n in SERVICES} == {"healthy"}, 90)


def test_containers_are_as_confined_as_the_file_says(site):
    for name in SERVICES:
        [found] = json.loads(docker("inspect", site.container(name)))
        host = found["HostConfig"]
        assert host["ReadonlyRootfs"] is True
        assert host["CapDrop"] == ["ALL"]
        assert host["SecurityOpt"] == ["no-new-privileges:true"]
        assert 0 < host["Memory"] == host["MemorySwap"]
        assert host["PidsLimit"] > 0
        assert found["Config"]["User"] == "10001:10001"
        assert found["Config"]["StopSignal"] in ("SIGTERM", "")


def test_modules_have_no_capability_and_cannot_write_their_root(site):
    code = (
        "print(open('/proc/1/status').read())\n"
        "try: open('/opt/skerry/x', 'w')\n"
        "except OSError as error: print(error)"
    )
    for name in SERVICES:
        said = docker("exec", site.container(name), "python3", "-c", code)
        assert "CapEff:\t0000000000000000" in said
        assert "NoNewPrivs:\t1" in said
        assert "Read-only file system" in said


def test_nobody_reaches_the_outside(site):
    """Somebody outside listens, and can be reached from a container that has a network of the world."""
    name = f"{site.project}-far"
    server = ["--entrypoint=python3", READER, "-m", "http.server"]
    docker("run", "--detach", "--rm", "--name", name, *server)
    try:
        address = docker("inspect", "-f", "{{.NetworkSettings.IPAddress}}", name).strip()
        code = (
            "import socket\n"
            f"try: socket.create_connection(({address!r}, 8000), 2); print('yes')\n"
            "except OSError as error: print('no:', error)"
        )
        control = ["run", "--rm", "--entrypoint=python3", READER, "-c", code]
        eventually(lambda: docker(*control) == "yes\n", 30)
        for service in SERVICES:
            assert docker("exec", site.container(service), "python3", "-c", code).startswith("no:"), service
    finally:
        docker("rm", "--force", name)


def test_there_is_no_pip_in_an_image(site):
    code = (
        "from importlib.util import find_spec\n"
        "print([name for name in ('pip', 'setuptools', 'ensurepip') if find_spec(name)])"
    )
    for name in SERVICES:
        assert docker("exec", site.container(name), "python3", "-c", code) == "[]\n"


def test_what_is_in_an_image_is_listed(site):
    code = (
        "import json, glob, importlib.metadata as m\n"
        "[path] = glob.glob('/usr/share/sbom/*.cdx.json')\n"
        "listed = {(c['name'], c['version']) for c in json.load(open(path))['components']}\n"
        "found = m.distributions(path=['/opt/skerry'])\n"
        "there = {(d.metadata['Name'].lower().replace('_', '-'), d.version) for d in found}\n"
        "print(listed == there, len(there))"
    )
    for name in SERVICES[1:]:
        assert docker("exec", site.container(name), "python3", "-c", code).startswith("True")


@pytest.mark.parametrize("name", SERVICES)
def test_killed_by_hand_and_started_again_it_goes_on(site, name):
    docker("kill", site.container(name))
    docker("start", site.container(name))
    flows(site)


@pytest.mark.parametrize("name", SERVICES)
def test_one_that_dies_is_started_again_by_the_engine(site, name):
    assert os.geteuid() == 0, "the engine's containers are other users' processes: run as root"
    before = site.restarts(name)
    os.kill(site.state(name)["Pid"], signal.SIGKILL)
    eventually(lambda: site.restarts(name) > before and site.state(name)["Running"], 60)
    flows(site)


def test_every_line_that_a_module_logs_is_json(site):
    for name in SERVICES[1:]:
        lines = site.logs(name)
        assert lines, name
        for line in lines:
            assert "event" in json.loads(line), f"{name}: {line}"


def test_nothing_is_written_outside_volumes(site):
    assert {name: site.written(name) for name in SERVICES} == {name: [] for name in SERVICES}


def test_at_the_end_the_ledger_balances(site):
    """Last in this file: it stops the site."""
    assert_balanced(site)


def test_the_same_scene_gives_the_same_events_as_a_plain_run(tmp_path):
    with composed(conformance.SITE, tmp_path, secure=True) as running:
        eventually(lambda: conformance.arrived(running.delivered()), 180)
        conformance.same(running.delivered())


def test_a_wrong_setting_ends_a_container_with_78():
    command = [DOCKER, "run", "--rm", "--read-only", "-e", "SKERRY_SETTINGS={}", READER]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 78
