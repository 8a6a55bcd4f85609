"""The images by themselves: what they are, what runs in them, and how they get their digest."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from composed import DOCKER, docker
from needs import ROOT, unless
from skerry import __version__
from skerry.broker import free_port
from skerry.cli.render import _digests
from skerry.testing import eventually

BASE, BUILDER = "skerry-base:bookworm", "skerry-builder:bookworm"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
RUNS = {
    "capture": "capture", "inference-cpu": "inference", "inference-openvino": "inference",
    "decision": "decision", "buffer": "buffer", "uplink": "uplink", "uplink-azure": "uplink",
    "updater": "updater",
}  # fmt: skip
"""The module in each image."""
IMPORTED = {
    "capture": ("av", "cv2", "numpy"), "inference-cpu": ("onnxruntime", "cv2"),
    "inference-openvino": ("openvino", "cv2"), "decision": ("msgspec",),
    "buffer": ("zstandard", "isal", "cryptography.fernet"), "uplink": ("awscrt.mqtt5", "zstandard"),
    "uplink-azure": ("azure.iot.device",), "updater": ("tuf.api.metadata", "skerry.updater.module"),
}  # fmt: skip
"""What is loaded from each image, stripped and trimmed as it is."""
pytestmark = pytest.mark.timeout(600)
registry = unless(
    shutil.which("docker-registry") is not None, "needs a registry (apt-get install docker-registry)"
)


def config(name: str) -> dict[str, Any]:
    """What an image says of itself."""
    found: dict[str, Any] = json.loads(
        docker("image", "inspect", "--format", "{{json .Config}}", f"skerry-{name}:{__version__}")
    )
    return found


def confined(name: str, *words: str, entry: str = "python3") -> subprocess.CompletedProcess[str]:
    """Run a command in an image, as little as it may be given."""
    command = [DOCKER, "run", "--rm", "--network=none", "--read-only", "--cap-drop=ALL", "--tmpfs=/tmp"]
    image = f"skerry-{name}:{__version__}"
    return subprocess.run(
        [*command, f"--entrypoint={entry}", image, *words], capture_output=True, text=True, check=False
    )


def build(*options: str) -> None:
    """Run `scripts/build-images` on the base of these tests."""
    certificates = [f"--ca={CERTIFICATES}"] if CERTIFICATES.is_file() else []
    command = [sys.executable, str(ROOT / "scripts/build-images"), f"--engine={DOCKER}", f"--base={BASE}"]
    done = subprocess.run(
        [*command, f"--builder={BUILDER}", *certificates, *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", [*RUNS, "broker", "package-parts"])
def test_an_image_runs_as_nobody_and_says_what_it_is(name):
    found = config(name)
    assert found["User"] == "10001:10001"
    assert found["StopSignal"] == "SIGTERM"
    assert found["Entrypoint"][0] in ("python3", "/usr/sbin/mosquitto"), "no shell"
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in found["Labels"].items()}
    assert set(labels) >= {"title", "description", "licenses", "version", "revision", "created"}
    assert len(labels["revision"]) == 40


@pytest.mark.parametrize("name", [*RUNS, "broker"])
def test_an_image_has_a_health_command_without_a_shell(name):
    assert config(name)["Healthcheck"]["Test"][:2] == ["CMD", "python3"]


@pytest.mark.parametrize("name", RUNS)
def test_a_module_says_what_it_wants_when_it_is_told_nothing(name):
    done = confined(name, "-m", f"skerry.{RUNS[name]}")
    assert done.returncode == 78, done.stdout + done.stderr


@pytest.mark.parametrize("name", IMPORTED)
def test_libraries_load_as_they_are_in_the_image(name):
    done = confined(name, "-c", f"import {', '.join(IMPORTED[name])}")
    assert done.returncode == 0, done.stderr


def test_openvino_has_a_processor_to_run_on():
    done = confined("inference-openvino", "-c", "import openvino; print(openvino.Core().available_devices)")
    assert "'CPU'" in done.stdout, done.stderr


@pytest.fixture
def volume() -> Iterator[str]:
    name = docker("volume", "create").strip()
    yield name
    docker("volume", "rm", name)


def test_a_package_image_fills_a_fresh_volume_and_again_replaces_what_is_there(volume):
    run = ("run", "--rm", "--network=none", "--read-only", "--cap-drop=ALL", f"-v={volume}:/models")
    image = f"skerry-package-parts:{__version__}"
    for _ in range(2):
        docker(*run, image, "/models/parts")
    listed = docker(*run, "--entrypoint=python3", image, "-c", "import os; print(os.listdir('/models'))")
    assert listed == "['parts']\n"
    code = (
        "from pathlib import Path\nfrom skerry.models.package import load\n"
        "print(load(Path('/models/parts')).title)"
    )
    there = docker(*run, "--entrypoint=python3", f"skerry-inference-cpu:{__version__}", "-c", code)
    assert there.startswith("parts")


def test_a_package_image_refuses_a_folder_that_it_cannot_replace(volume):
    command = [DOCKER, "run", "--rm", f"-v={volume}:/models/parts", f"skerry-package-parts:{__version__}"]
    done = subprocess.run([*command, "/models/parts"], capture_output=True, text=True, check=False)
    assert done.returncode == 73
    assert "name a folder in it" in done.stderr


def test_two_builds_of_one_tree_have_the_same_files(tmp_path):
    """Slowest here: it installs the wheels again."""
    tags = [f"test-{time.time_ns()}-{n}" for n in range(2)]
    try:
        for tag in tags:
            build("--only=decision", "--no-cache", f"--tag={tag}")
        command = [sys.executable, str(ROOT / "scripts/compare-images"), f"--engine={DOCKER}"]
        done = subprocess.run(
            [*command, *(f"skerry-decision:{tag}" for tag in tags)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        assert done.stdout.startswith("0 of ")
    finally:
        for tag in tags:
            docker("image", "rm", f"skerry-decision:{tag}")


@registry
def test_the_digest_in_the_report_is_the_one_by_which_a_registry_knows_the_image(tmp_path):
    port = free_port()
    (tmp_path / "registry.yml").write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {tmp_path}/blobs}}}}\n"
        f"http: {{addr: 127.0.0.1:{port}}}\n",
        encoding="utf-8",
    )
    prefix, tag, report = f"127.0.0.1:{port}/site", f"test-{time.time_ns()}", tmp_path / "report.json"
    options = (f"--registry={prefix}", f"--tag={tag}", "--push", f"--report={report}")
    log = (tmp_path / "registry.log").open("w")
    with (
        log,
        subprocess.Popen(
            ["docker-registry", "serve", str(tmp_path / "registry.yml")], stdout=log, stderr=log
        ) as serving,
    ):
        try:
            package = f"--package={ROOT / 'models/parts'}"
            eventually(lambda: "listening" in (tmp_path / "registry.log").read_text(encoding="utf-8"), 30)
            build(package, *options)
            digests = _digests(report)
            assert set(digests) == {"package-parts"}
            docker("image", "rm", f"{prefix}/skerry-package-parts:{tag}")
            pinned = f"{prefix}/skerry-package-parts:{tag}@{digests['package-parts']}"
            docker("pull", pinned)
            docker("image", "rm", pinned)
        finally:
            serving.terminate()
