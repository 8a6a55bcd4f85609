"""`skerry deploy docker` on a real engine: made, changed, cut off, removed."""

import json
import os
import select
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from composed import DOCKER, READER, docker
from conformance import SITE, arrived, parsed, same
from needs import ROOT
from skerry.cli import main
from skerry.deploy.account import Counts, camera_ledger, event_ledger
from skerry.deploy.contained import OUTPUT, contained, place
from skerry.deploy.plan import plan
from skerry.deploy.site import load_site
from skerry.ledger import balanced
from skerry.testing import eventually

MODULES = ("broker", "uplink", "buffer", "decision", "inference", "capture")
pytestmark = pytest.mark.timeout(600)
_TALLIES = """
import json, sys
from pathlib import Path
from skerry.ledger import read_tally
print(json.dumps({name: read_tally(Path("/read", name, name, "tally")) for name in sys.argv[1:]}))
"""


class Deployed:
    """A site file whose name nobody else has, and what an engine has of it."""

    def __init__(self, folder: Path, source: Path) -> None:
        self.name = f"test-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self.file = folder / "site.yaml"
        text = source.read_text(encoding="utf-8")
        [old] = [line for line in text.splitlines() if line.startswith("site: ")]
        text = text.replace(old, f"site: {self.name}", 1)
        models = (source.parent / "../models").resolve()
        models = models if models.is_dir() else ROOT / "models"
        text = text.replace("../../models", str(models)).replace("../models", str(models))
        self.file.write_text(text, encoding="utf-8")
        self.certificates = folder / "certs"
        assert main(["certs", str(self.file), "--out", str(self.certificates)]) == 0

    def arguments(self, *more: str) -> list[str]:
        return ["deploy", "docker", str(self.file), "--certificates", str(self.certificates), *more]

    def deploy(self, *more: str) -> int:
        return main(self.arguments(*more))

    def change(self, old: str, new: str) -> None:
        text = self.file.read_text(encoding="utf-8")
        assert old in text
        self.file.write_text(text.replace(old, new), encoding="utf-8")

    def called(self, what: str) -> str:
        return f"skerry-{self.name}-{what}"

    def container(self, module: str) -> dict[str, Any]:
        [found] = json.loads(docker("inspect", self.called(module)))
        return dict(found)

    def ids(self) -> dict[str, tuple[str, str]]:
        return {name: ((its := self.container(name))["Id"], its["State"]["StartedAt"]) for name in MODULES}

    def left(self) -> dict[str, list[str]]:
        mine = f"name={self.called('')}"
        return {
            "containers": docker("ps", "-aq", f"--filter={mine}").split(),
            "volumes": docker("volume", "ls", "-q", f"--filter={mine}").split(),
            "networks": docker("network", "ls", "-q", f"--filter={mine}").split(),
        }

    def counts(self) -> Counts:
        names = [part.module for part in self.plan().parts]
        volumes = [f"-v={self.called(name)}-state:/read/{name}:ro" for name in names]
        text = docker("run", "--rm", "--entrypoint=python3", *volumes, READER, "-c", _TALLIES, *names)
        found: Counts = json.loads(text)
        return found

    def delivered(self) -> list[dict[str, Any]]:
        code = f"import pathlib; print(pathlib.Path('{OUTPUT}/events.jsonl').read_text())"
        volume = f"-v={self.called('output')}:{OUTPUT}:ro"
        return parsed(docker("run", "--rm", "--entrypoint=python3", volume, READER, "-c", code))

    def plan(self) -> Any:
        inside, _ = contained(load_site(self.file, here=False))
        return plan(inside, place(inside, secure=True))

    def flows(self, more: int = 2) -> None:
        """Wait until events that were decided from now on have been delivered."""
        goal = self.counts()["decision"].get("decided", 0) + more
        eventually(lambda: self.counts()["buffer"].get("delivered", 0) >= goal, 120)

    def clear(self) -> None:
        left = self.left()
        for name in left["containers"]:
            subprocess.run([DOCKER, "rm", "-f", name], capture_output=True, check=False)
        for name in left["volumes"]:
            subprocess.run([DOCKER, "volume", "rm", "-f", name], capture_output=True, check=False)
        for name in left["networks"]:
            subprocess.run([DOCKER, "network", "rm", name], capture_output=True, check=False)


@contextmanager
def api_over_tcp() -> Iterator[str]:
    """This machine's engine at an address of the network."""

    class Forward(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.socket(socket.AF_UNIX) as engine:
                engine.connect("/var/run/docker.sock")
                ends = {self.request: engine, engine: self.request}
                while True:
                    for readable in select.select(list(ends), [], [])[0]:
                        data = readable.recv(65_536)
                        if not data:
                            return
                        ends[readable].sendall(data)

    socketserver.ThreadingTCPServer.daemon_threads = True
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Forward) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"tcp://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    its = Deployed(tmp_path_factory.mktemp("site"), ROOT / "sites" / "demo.yaml")
    try:
        assert its.deploy() == 0
        its.flows()
        yield its
    finally:
        its.clear()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Deployed]:
    its = Deployed(tmp_path, ROOT / "sites" / "demo.yaml")
    try:
        yield its
    finally:
        its.clear()


def test_everybody_is_healthy_when_the_command_ends(site: Deployed) -> None:
    assert {site.container(n)["State"]["Health"]["Status"] for n in MODULES} == {"healthy"}


def test_a_second_run_changes_nothing(site: Deployed, capsys: pytest.CaptureFixture[str]) -> None:
    before = site.ids(), site.left()
    assert site.deploy() == 0
    assert site.deploy("--diff") == 0
    assert (site.ids(), site.left()) == before
    assert capsys.readouterr().out.count("nothing to do") == 2


def test_nothing_is_mounted_from_the_engines_machine(site: Deployed) -> None:
    for name in MODULES:
        assert {mount["Type"] for mount in site.container(name)["Mounts"]} <= {"volume", "tmpfs"}


def test_containers_are_as_confined_as_those_of_compose(site: Deployed) -> None:
    for name in MODULES:
        its = site.container(name)
        host = its["HostConfig"]
        assert host["ReadonlyRootfs"] is True
        assert host["CapDrop"] == ["ALL"]
        assert host["SecurityOpt"] == ["no-new-privileges:true"]
        assert 0 < host["Memory"] == host["MemorySwap"]
        assert host["PidsLimit"] > 0
        assert its["Config"]["User"] == "10001:10001"


def test_a_key_is_its_readers_alone(site: Deployed) -> None:
    code = (
        "import os\n"
        "s = os.stat('/run/certificates/tls.key'); print(oct(s.st_mode), s.st_uid, s.st_gid)\n"
        "try: open('/run/certificates/x', 'w')\n"
        "except OSError as error: print(error.strerror)"
    )
    for name in MODULES:
        said = docker("exec", site.called(name), "python3", "-c", code)
        assert said == "0o100600 10001 10001\nRead-only file system\n"


def test_no_label_has_a_key_in_it(site: Deployed) -> None:
    for name in MODULES:
        key = (site.certificates / name / "tls.key").read_text()
        assert key.splitlines()[1][:40] not in json.dumps(site.container(name))


def test_one_changed_line_replaces_one_container_and_nothing_is_lost(
    site: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    before = site.ids()
    site.change("above: 3", "above: 2")
    assert site.deploy("--diff") == 1
    out = capsys.readouterr().out
    assert "settings.rules[3].above: 3 -> 2" in out
    assert site.ids() == before
    assert site.deploy() == 0
    after = site.ids()
    assert [name for name in MODULES if after[name] != before[name]] == ["decision"]
    site.flows()
    with_less_memory = site.container("buffer")["HostConfig"]["Memory"]
    site.change("\nlink:", "\nresources: {buffer: {memory_mb: 200}}\nlink:")
    assert site.deploy() == 0
    assert site.container("buffer")["HostConfig"]["Memory"] == 200 * 1024 * 1024 != with_less_memory
    assert [name for name in MODULES if site.ids()[name] != after[name]] == ["buffer"]
    site.flows()


def test_one_that_was_stopped_is_started_again(site: Deployed, capsys: pytest.CaptureFixture[str]) -> None:
    before = site.ids()["inference"][0]
    docker("stop", site.called("inference"))
    assert site.deploy() == 0
    assert "> container" in capsys.readouterr().out
    assert site.ids()["inference"][0] == before
    site.flows()


def test_removed_in_the_order_of_the_flow_the_ledger_balances(
    site: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    """Last of those that share a site: it removes it."""
    assert site.deploy("--remove") == 0
    stops = [line.split()[-1] for line in capsys.readouterr().out.splitlines() if " stop " in line]
    assert stops == [site.called(name) for name in reversed(MODULES)]
    counts = site.counts()
    the_plan = site.plan()
    camera = camera_ledger(the_plan, "belt", {}, counts, died=False)
    events = event_ledger(the_plan, {}, counts)
    assert balanced({"belt": camera}, events), f"{camera} {events}"
    far = site.delivered()
    assert len({event["id"] for event in far}) == len(far) == events.delivered > 0
    left = site.left()
    assert left["containers"] == left["networks"] == []
    assert sorted(left["volumes"]) == sorted(
        site.called(name) for name in ("output", *(f"{part.module}-state" for part in the_plan.parts))
    )
    assert site.deploy("--remove", "--state") == 0
    assert site.left() == {"containers": [], "volumes": [], "networks": []}


@pytest.mark.parametrize("where", ["  volume ", "  start "])
def test_a_run_that_was_killed_is_completed_by_the_next(fresh: Deployed, where: str) -> None:
    command = [sys.executable, "-u", "-m", "skerry", *fresh.arguments("--wait", "0")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        seen = 0
        for line in running.stdout:
            seen += where in line
            if seen == 3:
                running.kill()
                break
    assert fresh.left()["volumes"]
    assert fresh.deploy() == 0
    assert fresh.deploy("--diff") == 0
    fresh.flows()
    assert not [name for name in docker("ps", "-a", "--format={{.Names}}").split() if fresh.called("") in name
                and name.endswith((".new", ".fill"))]  # fmt: skip


def test_an_engine_far_away_needs_nothing_but_its_api(
    fresh: Deployed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with api_over_tcp() as address:
        monkeypatch.setenv("DOCKER_HOST", address)
        assert fresh.deploy() == 0
        assert fresh.deploy("--diff") == 0
        monkeypatch.delenv("DOCKER_HOST")
        fresh.flows()
        monkeypatch.setenv("DOCKER_HOST", address)
        assert fresh.deploy("--remove", "--state") == 0
    monkeypatch.delenv("DOCKER_HOST")
    assert fresh.left() == {"containers": [], "volumes": [], "networks": []}


def test_only_who_goes_out_is_in_the_network_that_leads_there(fresh: Deployed) -> None:
    def networks(module: str) -> set[str]:
        return set(fresh.container(module)["NetworkSettings"]["Networks"])

    away, file = "link: {kind: mqtt, host: 192.0.2.1}", "link: {kind: file, path: events.jsonl}"
    fresh.change(file, away)
    assert fresh.deploy("--wait", "0") == 0
    site, outside = fresh.called("site"), fresh.called("outside")
    assert {name: networks(name) for name in MODULES} == {
        name: {site, outside} if name == "uplink" else {site} for name in MODULES
    }
    assert json.loads(docker("network", "inspect", site))[0]["Internal"] is True
    fresh.change(away, file)
    assert fresh.deploy("--wait", "0") == 0
    assert networks("uplink") == {site}
    assert len(fresh.left()["networks"]) == 1


def test_a_package_can_stay_where_it_is(fresh: Deployed, tmp_path: Path) -> None:
    package = tmp_path / "elsewhere"
    shutil.copytree(ROOT / "models" / "parts", package)
    assert fresh.deploy("--bind", f"models/parts={package}", "--wait", "0") == 0
    [mount] = [m for m in fresh.container("inference")["Mounts"] if m["Destination"] == "/models/parts"]
    assert (mount["Type"], mount["Source"], mount["RW"]) == ("bind", str(package), False)
    assert not [name for name in fresh.left()["volumes"] if "-models-" in name]


def test_one_that_cannot_start_says_why(fresh: Deployed, capsys: pytest.CaptureFixture[str]) -> None:
    fresh.change("\nlink:", "\nresources: {inference: {memory_mb: 24}}\nlink:")
    assert fresh.deploy("--wait", "60") == 69
    assert "inference: expected it healthy" in capsys.readouterr().err


def test_a_missing_image_is_named_with_how_to_get_it(
    fresh: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fresh.deploy("--tag", "0.0.0") == 69
    err = capsys.readouterr().err
    assert (
        'image skerry-buffer:0.0.0: expected it on the engine, got none (make images ARGS="--only buffer")'
        in err
    )
    assert fresh.left() == {"containers": [], "volumes": [], "networks": []}


def test_somebody_elses_container_is_not_touched(fresh: Deployed, capsys: pytest.CaptureFixture[str]) -> None:
    docker("create", "--name", fresh.called("buffer"), READER)
    assert fresh.deploy() == 78
    assert "got one that skerry did not make" in capsys.readouterr().err
    assert len(fresh.left()["containers"]) == 1


def test_the_same_site_gives_the_same_events(tmp_path: Path) -> None:
    its = Deployed(tmp_path, SITE)
    try:
        assert its.deploy("--wait", "0") == 0

        def events() -> list[dict[str, Any]]:
            try:
                found = its.delivered()
            except AssertionError:  # the file is not there yet
                return []
            return parsed("\n".join(json.dumps(event).replace(its.name, "same") for event in found))

        eventually(lambda: arrived(events()), 180)
        assert its.deploy("--remove") == 0
        same(events())
    finally:
        its.clear()
