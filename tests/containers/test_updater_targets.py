"""A signed model comes to the site of each target, and serves after a crash: `test_updater` has the rest."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import needs
from composed import docker
from containers.test_greengrass import MODULES as OTHERS
from containers.test_greengrass import NAME, core
from containers.test_updater import NEW, SITE, plugged_in, ready_with, release, said, shared_media
from edge_agent import Device, brought
from kube_played import played
from needs import ROOT
from publisher import Publisher
from skerry.cli import main
from skerry.models.slots import check_sizes, read_slots
from skerry.testing import eventually

_PID = "--format={{.State.Pid}}"
MODULES = ("broker", "updater", *OTHERS[1:])
pytestmark = pytest.mark.timeout(900)


class On(NamedTuple):
    """A site that runs somewhere.

    Attributes:
        store: the folder that its model store is here.
        logs: of a module, all lines so far.
        crash: of inference, and whoever starts it again there has done so or will.
    """

    store: Path
    logs: Callable[[str], list[str]]
    crash: Callable[[], object]


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    with shared_media(tmp_path / "room") as room:
        publisher = Publisher(room / "repository", now=time.time() - 3600)
        release(publisher, room, "1.1.0")
        yield room


def site_of(room: Path) -> str:
    return SITE.replace("ROOM", str(room)).replace("../models", str(ROOT / "models"))


def takes_the_new_one(site: On, room: Path) -> None:
    """Wait until it does, and say what there was where it does not."""
    try:
        eventually(lambda: ready_with(site.logs("inference")) == ["parts@1.0.0"], 180)
        with plugged_in(room):
            eventually(lambda: said(site.logs("updater"), "model.confirmed"), 180)
        current = read_slots(site.store, "belt").current
        assert current is not None
        check_sizes(site.store, current)
        site.crash()
        eventually(lambda: ready_with(site.logs("inference"))[-1:] == [NEW], 180)
    except AssertionError as error:
        ends = [f"== {name}\n" + "\n".join(site.logs(name)[-15:]) for name in ("updater", "inference")]
        raise AssertionError("\n".join([str(error), *ends])) from error


def lines_of(container: str) -> list[str]:
    return docker("logs", container, both=True).splitlines()


def volume_of(name: str) -> Path:
    return Path(docker("volume", "inspect", "-f", "{{.Mountpoint}}", name).strip())


def crash(pid: str) -> None:
    assert os.geteuid() == 0, "the engine's containers are other users' processes: run as root"
    os.kill(int(pid), signal.SIGKILL)


def test_iot_edge(room: Path, tmp_path: Path) -> None:
    name = f"upd{os.getpid()}"
    file = tmp_path / "site.yaml"
    file.write_text(site_of(room).replace("site: demo", f"site: {name}"), encoding="utf-8")
    out, certificates = tmp_path / "out", tmp_path / "certificates"
    assert main(["render", "iotedge", str(file), "--out", str(out)]) == 0
    assert main(["certs", str(file), "--out", str(certificates)]) == 0
    for module in MODULES:
        shutil.copytree(certificates / module, out / "device/certificates" / module)
    (out / "device/inputs").mkdir()
    shutil.copy(room / "repository/metadata/1.root.json", out / "device/inputs")
    manifest = json.loads((out / "deployment.json").read_text(encoding="utf-8"))
    workload = tmp_path / "workload.sock"
    workload.touch()
    device = Device(manifest, f"skerry-test-{name}", workload)
    with brought(out / "device", Path("/var/lib/skerry", name)):
        try:
            device.connect()
            device.apply()
            at = On(
                store=volume_of(f"skerry-{name}-model-store"),
                logs=lambda module: lines_of(f"{device.prefix}-{module}"),
                crash=lambda: [docker(does, f"{device.prefix}-inference") for does in ("kill", "start")],
            )
            takes_the_new_one(at, room)
        finally:
            device.remove()


def test_greengrass(room: Path, tmp_path: Path) -> None:
    folder = tmp_path / "gg"
    (folder / "device/inputs").mkdir(parents=True)
    shutil.copy(room / "repository/metadata/1.root.json", folder / "device/inputs")
    with core(folder, "nucleus", "{kind: file, path: events.jsonl}", site_of(room)) as device:
        for module in MODULES:
            done = device.do(module, "startup")
            assert done.returncode == 0, f"{module}: {done.stderr}"

        at = On(
            store=volume_of(f"{NAME}-model-store"), logs=lambda module: lines_of(device.container(module)),
            crash=lambda: crash(docker("inspect", _PID, device.container("inference"))),
        )  # fmt: skip
        takes_the_new_one(at, room)


@needs.podman
def test_k3s(room: Path, tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(site_of(room), encoding="utf-8")
    with played(
        file, tmp_path / "played", {"secrets-updater": room / "repository/metadata/1.root.json"}
    ) as site:
        pod = {"updater": "updater", "inference": "vision"}
        at = On(
            store=site.volume("model-store"),
            logs=lambda name: site.podman("logs", site.container(pod[name], name), both=True).splitlines(),
            crash=lambda: crash(site.podman("inspect", _PID, site.container("vision", "inference"))),
        )
        eventually(lambda: ready_with(at.logs("inference")) == ["parts@1.0.0"], 180)
        # As an operator does it with `kubectl cp`: a pod sees no stick.
        shutil.copytree(room / "repository", site.volume("inputs") / "stick")
        takes_the_new_one(at, room)
        assert site.stop() == dict.fromkeys([name for _, name in site.containers()], 0)
