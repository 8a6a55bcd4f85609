"""The ARM64 images run, under qemu-user, and find what those for x86-64 find: `make test-arm64`.

The images are `skerry-NAME:VERSION-arm64`; docs/containers.md says how they are built on another machine. The
emulated processor has no /sys of its own: ONNX Runtime, which looks the processor up there, ends with
a segmentation fault on this machine's, and goes on with a warning where it finds nothing.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import conformance
from composed import DOCKER, Composed, docker
from needs import ROOT
from skerry import __version__
from skerry.capture.scene import Scene
from skerry.cli import main
from skerry.deploy.compose import COMPOSE_FILE
from skerry.deploy.contained import contained, place
from skerry.deploy.plan import plan
from skerry.deploy.site import load_site
from skerry.testing import eventually

TAG = f"{__version__}-arm64"
TOLERANCE = 0.001
"""Of scores, attributes, and corners of boxes as parts of the picture: kernels add in another order."""
NO_PROCESSORS = "/sys/devices/system/cpu"
FRAMES = 6
PATIENCE_S = 600
EMULATED = ("inference", "decision")
RUNS = ("capture", "inference-cpu", "decision", "buffer", "uplink", "uplink-azure", "updater")
_LOOK = """
import json, platform
from pathlib import Path
import numpy as np
from skerry.inference.model import Model
from skerry.inference.settings import ModelUse
model = Model(ModelUse(package="/models/parts"), Path("/tmp"), 1.0)
results = [model.infer([model.prepare(frame)])[0][0] for frame in np.load("/input/frames.npy")]
rows = [[[d.label, d.score, *d.box, *dict(d.attributes).values()] for d in r.objects] for r in results]
print(json.dumps([platform.machine(), rows]))
"""
pytestmark = pytest.mark.timeout(1800)


def look(tag: str, folder: Path) -> tuple[str, list[list[Any]]]:
    """The machine that an image says it runs on, and what it finds in the frames of a folder."""
    nothing = folder / "nothing"
    nothing.mkdir(exist_ok=True)
    said = docker(
        "run", "--rm", "--network=none", "--read-only", "--cap-drop=ALL", "--tmpfs=/tmp",
        "--entrypoint=python3", f"-v={nothing}:{NO_PROCESSORS}:ro", f"-v={folder}:/input:ro",
        f"-v={ROOT}/models/parts:/models/parts:ro", f"skerry-inference-cpu:{tag}", "-c", _LOOK,
    )  # fmt: skip
    machine, rows = json.loads(said.splitlines()[-1])
    return machine, rows


def test_inference_finds_the_same_parts_in_the_same_frames(tmp_path):
    tmp_path.chmod(0o755)  # for the image's user
    scene = Scene(seed=1, width=640, height=480)
    np.save(tmp_path / "frames.npy", np.stack([scene.render(3.0 + 2 * n) for n in range(FRAMES)]))
    machine, found = look(TAG, tmp_path)
    here, wanted = look(__version__, tmp_path)
    assert (machine, here) == ("aarch64", os.uname().machine)
    assert [[part[0] for part in frame] for frame in found] == [
        [part[0] for part in frame] for frame in wanted
    ]
    ours, theirs = (np.array([p[1:] for frame in rows for p in frame]) for rows in (found, wanted))
    assert len(ours) > 2 * FRAMES
    assert np.abs(ours - theirs).max() <= TOLERANCE


def short_site(folder: Path) -> Path:
    """A short part of the site that every target is compared with."""
    site = yaml.safe_load(conformance.SITE.read_text(encoding="utf-8"))
    site["cameras"][0]["source"] |= {"seconds": 8, "fps": 5}  # a frame takes seconds
    site["models"][0]["package"] = str(ROOT / "models/parts")
    path = folder / "site.yaml"
    path.write_text(yaml.safe_dump(site), encoding="utf-8")
    return path


def plain_run(site: Path, folder: Path) -> list[dict[str, Any]]:
    """The events of a run on this machine."""
    assert main(["run", str(site), "--out", str(folder), "--json"]) == 0
    return conformance.parsed((folder / "events.jsonl").read_text(encoding="utf-8"))


def told(service: dict[str, Any], **more: float) -> None:
    """Tell a service of a compose file more than its site does."""
    settings = json.loads(service["environment"]["SKERRY_SETTINGS"]) | more
    service["environment"]["SKERRY_SETTINGS"] = json.dumps(settings)


def said(events: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """What was said of which part, without numbers that kernels differ in."""
    return sorted((e["lane"], e["type"], e["subject"], str(e["data"].get("frame"))) for e in events)


def test_inference_and_decision_give_the_events_that_they_give_here(tmp_path):
    site, folder = short_site(tmp_path), tmp_path / "composed"
    wanted = plain_run(site, tmp_path / "here")
    assert wanted
    assert main(["render", "compose", str(site), "--out", str(folder), "--plain-bus"]) == 0
    document = yaml.safe_load((folder / COMPOSE_FILE).read_text(encoding="utf-8"))
    (tmp_path / "nothing").mkdir()
    for name in EMULATED:
        service = document["services"][name]
        service["image"] += "-arm64"
        service.setdefault("volumes", []).append(f"{tmp_path}/nothing:{NO_PROCESSORS}:ro")
        service["mem_limit"] = service["memswap_limit"] = "2g"  # emulation takes its own
        service["healthcheck"] = {"disable": True}  # each is a start of Python
        told(service, watchdog_s=PATIENCE_S)
    told(document["services"]["capture"], fast_wait_s=PATIENCE_S, consumer_wait_s=PATIENCE_S)
    (folder / COMPOSE_FILE).write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    inside, _ = contained(load_site(site, here=False))
    running = Composed(folder, plan(inside, place(inside, secure=False)), f"skerry-arm64-{os.getpid()}")
    try:
        running.compose("up", "-d")
        for name in EMULATED:
            code = "import os; print(os.uname().machine)"
            assert docker("exec", running.container(name), "python3", "-c", code) == "aarch64\n"
        eventually(lambda: len(running.delivered()) >= len(wanted), 1200)
        assert said(running.delivered()) == said(wanted)
    finally:
        running.compose("down", "-v", "-t", "30")


@pytest.mark.parametrize("name", RUNS)
def test_every_module_starts_and_says_what_it_wants(name):
    command = [
        DOCKER, "run", "--rm", "--network=none", "--read-only", "--cap-drop=ALL", f"skerry-{name}:{TAG}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 78, done.stdout + done.stderr


def test_the_images_say_that_they_are_for_arm64():
    for name in ("broker", *RUNS):
        command = [DOCKER, "image", "inspect", "--format", "{{.Architecture}}", f"skerry-{name}:{TAG}"]
        assert subprocess.check_output(command, text=True).strip() == "arm64"
