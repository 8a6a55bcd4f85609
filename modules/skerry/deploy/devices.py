"""Classes of devices: what a site may take on each, as far as it can be said before a device is seen."""

from __future__ import annotations

from typing import Literal

import msgspec

from skerry.deploy.containers import Accelerator


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of hardware."""

    about: str
    architecture: Literal["amd64", "arm64"]
    """As Docker and Kubernetes call it."""
    memory_mb: int
    """All of it, MiB."""
    cores: int
    accelerators: tuple[Accelerator, ...] = ()

    @property
    def free_mb(self) -> int:
        """What is left for modules beside the system, the engine and the platform's own agent, MiB.

        All but a quarter, or all but 1 GiB of a large one.
        """
        return self.memory_mb - min(self.memory_mb // 4, 1024)


DEVICES = {
    "arm64-4gb": Device(about="ARM64 board, 4 GB", architecture="arm64", memory_mb=3840, cores=4),
    "amd64-gateway": Device(about="x86-64 gateway, 8 GB", architecture="amd64", memory_mb=7680, cores=4),
    "amd64-intel": Device(
        about="x86-64 with an Intel GPU and NPU, 16 GB", architecture="amd64", memory_mb=15360, cores=8,
        accelerators=("intel-gpu", "intel-npu"),
    ),
    "amd64-nvidia": Device(
        about="x86-64 with an NVIDIA GPU, 16 GB", architecture="amd64", memory_mb=15360, cores=8,
        accelerators=("nvidia",),
    ),
    "jetson-8gb": Device(
        about="Jetson Orin, 8 GB for processor and GPU", architecture="arm64", memory_mb=7424, cores=6,
        accelerators=("nvidia",),
    ),
}  # fmt: skip
"""By the name that a site file gives. Memory is what such a device's kernel reports, rounded down."""
