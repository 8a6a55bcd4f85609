"""The updater in a container: a signed package comes to the device, proves itself, and outlives everybody."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from composed import READER, Composed, composed, docker
from containers.test_deploy_docker import Deployed
from needs import ROOT
from publisher import Publisher
from skerry.deploy.account import camera_ledger, event_ledger
from skerry.deploy.contained import STORE
from skerry.ledger import balanced
from skerry.models import layout
from skerry.models.package import MANIFEST
from skerry.testing import eventually
from skerry.trust.packages import TrustedPackage

PACKAGE = ROOT / "models" / "parts"
SITE = """
site: demo
cameras:
  - name: belt
    source: {kind: synthetic, scene: belt, seed: 1, fps: 10, width: 640, height: 480}
models:
  - package: ../models/parts
    slot: belt
    runtime: onnxruntime
    threads: 1
    exchange: {probation_s: 3, shadow_frames: 10}
rules:
  - {name: counted, kind: line, camera: belt, labels: [bolt, nut, washer], line: [[0.5, 0], [0.5, 1]]}
updater:
  root: ROOM/repository/metadata/1.root.json
  slots: {belt: {model: parts}}
  sources: [{kind: folder, path: ROOM/media/stick}]
  check_s: 2
"""
NEW = "parts@1.1.0"
_SLOTS = """
import sys
from pathlib import Path
from skerry.models.slots import check_sizes, read_slots
store = Path(sys.argv[1])
slots = read_slots(store, "belt")
if slots.current: check_sizes(store, slots.current)
print(slots.current or "", slots.trial or "")
"""
_WRITE = """
import os, sys
from pathlib import Path
store = Path(sys.argv[1])
print(sorted(p.name for p in (store / "slots").iterdir()))
package = next((store / "packages").iterdir())
for change in (
    lambda: (store / "x").write_text("x"), lambda: (store / "slots" / "belt").unlink(),
    lambda: os.rename(package, store / "packages" / "y"), lambda: (package / "manifest.json").open("r+"),
    lambda: os.chmod(store, 0o777), lambda: (store / "lock").open("w"),
):
    try: change(); print("written")
    except OSError as error: print(error.strerror)
"""
pytestmark = pytest.mark.timeout(600)


def release(publisher: Publisher, room: Path, version: str) -> str:
    """Sign the demo's package under another version; returns its digest."""
    folder = room / f"parts-{version}"
    shutil.copytree(PACKAGE, folder)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    (folder / MANIFEST).write_text(json.dumps({**manifest, "version": version}), encoding="utf-8")
    packed = layout.pack(folder, publisher.folder)
    digest = str(packed.listing.digest)
    about = {"name": "parts", "version": version, "length": packed.listing.size}
    publisher.add(TrustedPackage(digest=f"sha256:{digest}", **about))
    return digest


def site_file(room: Path) -> Path:
    path = room / "site.yaml"
    text = SITE.replace("ROOM", str(room)).replace("../models/parts", str(PACKAGE))
    path.write_text(text, encoding="utf-8")
    return path


def said(lines: list[str], event: str) -> list[dict[str, str]]:
    """What a module has logged under this name."""
    return [entry for line in lines if (entry := json.loads(line)).get("event") == event]


def ready_with(lines: list[str]) -> list[str]:
    """The models that inference began with, life after life."""
    return [entry["model"] for entry in said(lines, "model.ready")]


def named(volume: str) -> list[str]:
    """Digests of what the store's slot names: what serves, and what is on trial."""
    at = f"-v={volume}:{STORE}:ro"
    return (
        docker("run", "--rm", "--entrypoint=python3", at, READER, "-c", _SLOTS, STORE).rstrip("\n").split(" ")
    )


def logs(its: Deployed, module: str) -> list[str]:
    return docker("logs", its.called(module), both=True).splitlines()


@contextmanager
def mounted(what: Path, where: Path) -> Iterator[None]:
    subprocess.run(["mount", "--bind", str(what), str(where)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(where)], check=True)


@contextmanager
def plugged_in(room: Path) -> Iterator[None]:
    """The repository is a stick, and in the device."""
    (room / "media/stick").mkdir(exist_ok=True)
    with mounted(room / "repository", room / "media/stick"):
        yield


@contextmanager
def shared_media(room: Path) -> Iterator[Path]:
    """A folder with one in it where sticks are mounted: for all to see, as systemd has it."""
    (room / "media").mkdir(parents=True)
    with mounted(room / "media", room / "media"):
        subprocess.run(["mount", "--make-shared", str(room / "media")], check=True)
        yield room


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Whoever publishes, in `repository`, and its sticks."""
    with shared_media(tmp_path_factory.mktemp("room")) as room:
        yield room


@pytest.fixture(scope="module")
def publisher(room: Path) -> Publisher:
    return Publisher(room / "repository", now=time.time() - 3600)


@pytest.fixture(scope="module")
def site(room: Path, publisher: Publisher, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composed]:
    with composed(site_file(room), tmp_path_factory.mktemp("site"), secure=True) as running:
        yield running


def kill(site: Composed, service: str) -> None:
    """Kill its process as a crash would, and wait until the engine has started it again."""
    before = site.restarts(service)
    os.kill(site.state(service)["Pid"], signal.SIGKILL)
    eventually(lambda: site.restarts(service) > before and site.state(service)["Running"], 60)


def test_it_begins_with_the_package_that_came_with_it(site: Composed) -> None:
    eventually(lambda: site.count("decision", "decided") >= 1, 120)
    assert ready_with(site.logs("inference")) == ["parts@1.0.0"]
    assert named(f"{site.project}_model-store") == ["", ""]


def test_what_is_published_serves_after_it_has_proved_itself(
    site: Composed, room: Path, publisher: Publisher
) -> None:
    """From a stick, which nobody had seen when the site was started, and which goes again."""
    digest = release(publisher, room, "1.1.0")
    assert list((room / "media/stick").iterdir()) == [], "made by the engine"
    with plugged_in(room):
        eventually(lambda: said(site.logs("updater"), "model.confirmed"), 120)
    assert named(f"{site.project}_model-store") == [digest, ""]
    [confirmed] = [s for s in said(site.logs("inference"), "model.step") if s["step"] == "confirmed"]
    assert confirmed["model"] == NEW


def test_inference_cannot_write_the_store(site: Composed) -> None:
    text = docker("exec", site.container("inference"), "python3", "-c", _WRITE, STORE)
    assert text.splitlines() == ["['belt']", *["Read-only file system"] * 6]


def test_the_updater_cannot_write_where_a_stick_goes(site: Composed) -> None:
    code = (
        "from pathlib import Path\n"
        "try: (Path('/sources/stick') / 'x').write_text('x')\n"
        "except OSError as error: print(error.strerror)"
    )
    text = docker("exec", site.container("updater"), "python3", "-c", code)
    assert text == "Read-only file system\n"


def test_nothing_is_written_outside_volumes(site: Composed) -> None:
    for name in ("inference", "updater"):
        assert site.written(name) == []
        host = json.loads(docker("inspect", "-f", "{{json .HostConfig}}", site.container(name)))
        assert host["ReadonlyRootfs"] is True


@pytest.mark.parametrize("first", ["updater", "inference"])
def test_killed_in_any_order_the_new_one_serves_on_from_the_store(site: Composed, first: str) -> None:
    assert os.geteuid() == 0, "the engine's containers are other users' processes: run as root"
    lives = len(ready_with(site.logs("inference")))
    for service in (first, *{"updater", "inference"} - {first}):
        kill(site, service)
    eventually(lambda: len(ready_with(site.logs("inference"))) == lives + 1, 60)
    assert ready_with(site.logs("inference"))[-1] == NEW
    goal = site.count("decision", "decided") + 2
    eventually(lambda: site.count("buffer", "delivered") >= goal, 120)
    eventually(lambda: site.state("updater")["Health"]["Status"] == "healthy", 90)


def test_at_the_end_the_ledger_balances(site: Composed) -> None:
    """It stops the site: the updater last, but for the broker."""
    site.compose("stop")
    names = (*(part.module for part in site.plan.parts), "broker")
    states = {name: site.state(name) for name in names}
    assert {name: state["ExitCode"] for name, state in states.items()} == dict.fromkeys(names, 0)
    ended = sorted(names, key=lambda name: str(states[name]["FinishedAt"]))
    assert ended == ["capture", "inference", "decision", "buffer", "uplink", "updater", "broker"]
    counts = site.counts()
    camera = camera_ledger(site.plan, "belt", {}, counts, died=False)
    events = event_ledger(site.plan, {}, counts)
    assert balanced({"belt": camera}, events), f"{camera} {events}"
    assert len({event["id"] for event in site.delivered()}) == events.delivered > 0


def test_a_site_that_was_taken_away_and_comes_back_has_its_models(room: Path, tmp_path: Path) -> None:
    """With `skerry deploy docker`, which brings the root metadata itself."""
    its = Deployed(tmp_path, site_file(room))
    try:
        assert its.deploy() == 0
        with plugged_in(room):
            eventually(lambda: said(logs(its, "updater"), "model.confirmed"), 120)
        store = its.called("model-store")
        before = named(store)
        assert its.deploy("--remove") == 0
        assert its.left()["containers"] == []
        assert store in docker("volume", "ls", "-q").split()
        assert its.deploy() == 0
        assert ready_with(logs(its, "inference")) == [NEW]
        assert named(store) == before
    finally:
        its.clear()
