"""What a test needs from the machine: `@needs.mosquitto` skips it, with the reason, where that is missing.

With SKERRY_FORBID_SKIPS=1 (as in continuous integration) nothing is skipped: what is missing then
fails the test that needs it, so a suite that quietly tests less cannot be green.
"""

import ctypes
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest

from skerry.broker import mosquitto as mosquitto_path

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "data"
"""Footage and foreign models that are not part of the repository."""
AZURE = ROOT / ".venv" / "azure"
"""Where `make test` puts what the image of the Azure uplink has: paho-mqtt 1.6.1 and azure-iot-device. As
PYTHONPATH it goes before what everything else uses; all else in it is of the same version."""

FORBIDDEN = os.environ.get("SKERRY_FORBID_SKIPS") == "1"


def unless(there: bool, reason: str) -> pytest.MarkDecorator:
    """Skip with a reason, or not at all where skips are forbidden."""
    return pytest.mark.skipif(not there and not FORBIDDEN, reason=reason)


@cache
def system_python() -> str:
    """The interpreter that Debian's Python bindings are installed for."""
    return shutil.which("python3", path="/usr/bin") or "/usr/bin/python3"


@cache
def _gst_rtsp() -> bool:
    probe = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    try:
        done = subprocess.run([system_python(), "-c", probe], capture_output=True, timeout=30, check=False)
    except OSError:
        return False
    return done.returncode == 0


def _strace() -> bool:
    return shutil.which("strace") is not None and sys.platform == "linux"


def _recorded_disk() -> bool:
    try:
        ctypes.CDLL("libfuse3.so.3")
    except OSError:
        return False
    devices = Path("/dev/fuse"), Path("/dev/loop-control")
    return os.geteuid() == 0 and shutil.which("mke2fs") is not None and all(d.exists() for d in devices)


@cache
def network_works() -> bool:
    """Whether a network namespace can be made, and a link into it."""
    if os.geteuid() or not all(map(shutil.which, ("ip", "tc", "mosquitto_sub"))):
        return False
    name = f"skerry-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return made


@cache
def small_disks_work() -> bool:
    """Whether a tmpfs can be mounted."""
    if os.geteuid():
        return False
    with tempfile.TemporaryDirectory() as folder:
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            return False
        subprocess.run(["umount", folder], capture_output=True, check=False)
    return True


@cache
def loop_works() -> bool:
    """Whether a file can be a disk with a file system of its own."""
    if os.geteuid() or not all(map(shutil.which, ("losetup", "mkfs.ext4"))):
        return False
    return subprocess.run(["losetup", "--find"], capture_output=True, check=False).returncode == 0


@cache
def kustomize_knows_targets() -> bool:
    """Whether kubectl's kustomize knows `patches` with a target: since kubectl 1.21; Debian 12 has 1.20."""
    patch = {"target": {"kind": "ConfigMap"}, "patch": '[{"op": "add", "path": "/data", "value": {}}]'}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "kustomization.yaml").write_text(
            json.dumps({"patches": [patch], "resources": ["x.yaml"]})
        )
        Path(folder, "x.yaml").write_text(
            '{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}}'
        )
        command = ["kubectl", "kustomize", folder]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def compiler_works() -> bool:
    """Whether there is a C compiler."""
    return shutil.which("cc") is not None


mosquitto = unless(mosquitto_path() is not None, "needs Mosquitto (apt-get install mosquitto)")
nats = unless(
    shutil.which("nats-server", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is not None,
    "needs the NATS server (apt-get install nats-server)",
)
rtsp = unless(
    _gst_rtsp(),
    "needs the GStreamer RTSP server (apt-get install python3-gi gir1.2-gst-rtsp-server-1.0 "
    "gstreamer1.0-plugins-ugly)",
)
network = unless(
    network_works(),
    "needs to run as root, with network namespaces (apt-get install iproute2 mosquitto-clients)",
)
small_disks = unless(small_disks_work(), "needs to run as root, and to mount a tmpfs")
loop_devices = unless(
    loop_works(), "needs to run as root, with loop devices (apt-get install mount e2fsprogs)"
)
kubectl = unless(
    shutil.which("kubectl") is not None, "needs kubectl (apt-get install kubernetes-client, or a newer one)"
)
podman = unless(
    os.geteuid() == 0
    and all(shutil.which(name) or Path("/usr/sbin", name).exists() for name in ("podman", "runc"))
    and Path("/usr/libexec/podman/catatonit").exists(),
    "needs to run as root, with podman (apt-get install podman catatonit runc)",
)
compiler = unless(compiler_works(), "needs a C compiler (apt-get install gcc libc6-dev)")
root = unless(os.geteuid() == 0, "needs to run as root")
strace = unless(_strace(), "needs strace (apt-get install strace)")
data = unless(DATA.is_dir(), f"needs the footage and models in {DATA}")
azure = unless(
    (AZURE / "azure").is_dir(),
    "needs paho-mqtt 1.6.1 and azure-iot-device in .venv/azure (make test prepares it)",
)
recorded_disk = unless(
    _recorded_disk(),
    "needs root, /dev/fuse, loop devices, FUSE and mke2fs (apt-get install libfuse3-3 e2fsprogs)",
)

OLD_PROCESSOR = ("qemu-x86_64-static", "-cpu", "Haswell")
"""Runs a program on an emulated x86-64 of 2013: AVX2, and nothing better for products of 8 bits."""
old_processor = unless(
    shutil.which(OLD_PROCESSOR[0]) is not None and platform.machine() == "x86_64",
    "qemu-x86_64-static is not installed (apt-get install qemu-user-static)",
)
