"""Classes of devices: what a site may take on each, and what is promised there, before one is seen.

They are written in `device-classes/`, one file a class; `make generate` makes of them what an installed
package reads.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from skerry.deploy.containers import Accelerator
from skerry.messages import Name
from skerry.settings import Positive, Settings

PACKAGED = "devices.json"
"""Beside this file, generated."""
Whole = Annotated[int, Meta(ge=1, le=2**31)]


class Budget(Settings, frozen=True, kw_only=True):
    """What a package may take of a device, with the class's load on it."""

    p95_ms: Positive
    """From a camera's frame to its event, 95th percentile at its upper confidence bound, milliseconds."""
    frames_per_s: Positive
    """Results of all cameras together."""
    memory_mib: Whole
    """Peak of what inference has resident, MiB."""
    start_s: Positive
    """From the start of the processes to the first result, seconds."""
    image_mb: Whole
    """Image of inference, uncompressed, MB."""
    power_w: Positive
    """The whole device under load, watts; judged where it can be read."""


class Load(Settings, frozen=True, kw_only=True):
    """What such a device is expected to carry: the load of multi-stream."""

    cameras: Annotated[int, Meta(ge=1, le=64)]
    fps: Annotated[float, Meta(gt=0, le=240)]
    """Of each camera."""


class Device(Settings, frozen=True, kw_only=True):
    """A kind of hardware."""

    about: Annotated[str, Meta(min_length=1, max_length=120)]
    architecture: Literal["amd64", "arm64"]
    """As Docker and Kubernetes call it."""
    memory_mb: Annotated[int, Meta(ge=256)]
    """All of it, MiB, as the kernel of such a device reports it, rounded down."""
    cores: Annotated[int, Meta(ge=1, le=1024)]
    accelerators: tuple[Accelerator, ...] = ()
    load: Load
    budget: Budget
    basis: dict[str, Annotated[str, Meta(min_length=1)]]
    """Where each figure of the budget comes from."""

    def __post_init__(self) -> None:
        wanted, said = set(Budget.__struct_fields__), set(self.basis)
        if wanted != said:
            raise ValueError(
                f"basis: expected a sentence for each figure of the budget, got "
                f"{', '.join(sorted(wanted ^ said))} on one side alone"
            )
        if self.budget.frames_per_s < self.load.cameras * self.load.fps:
            raise ValueError(
                f"budget.frames_per_s: expected at least the load, {self.load.cameras * self.load.fps:g}, "
                f"got {self.budget.frames_per_s:g}"
            )

    @property
    def free_mb(self) -> int:
        """What is left for modules beside the system, the engine and the platform's own agent, MiB.

        All but a quarter, or all but 1 GiB of a large one.
        """
        return self.memory_mb - min(self.memory_mb // 4, 1024)


def read_packaged(content: bytes) -> dict[str, Device]:
    """Classes as they are packaged, in their order there."""
    return msgspec.json.decode(content, type=dict[Name, Device])


DEVICES = read_packaged((files(__package__) / PACKAGED).read_bytes())
"""By the name that a site file gives."""
