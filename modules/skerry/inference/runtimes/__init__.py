"""Runtimes: what runs a model. A runtime runs, a decoder means.

A runtime is imported when it is used, never before: `open_session("openvino", ...)` costs nothing to
those who do not call it. One contract suite, `tests/contract/test_runtime.py`, covers all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from skerry.errors import ConfigError, PackageError
from skerry.models.manifest import Manifest
from skerry.models.package import Package

Array = npt.NDArray[Any]

RUNTIMES = {
    "onnxruntime": "skerry.inference.runtimes.onnxruntime",
    "openvino": "skerry.inference.runtimes.openvino",
}
"""Name to the module that has its `Runtime`."""

_EXTRAS = {"onnxruntime": "inference", "openvino": "openvino"}
_DISTRIBUTIONS = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"),
    "openvino": ("openvino",),
}


@dataclass(frozen=True)
class Tensor:
    """What a session says of an input or output.

    Attributes:
        shape: None stands for a dimension that is not fixed.
        dtype: numpy's name, e.g. float32.
    """

    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class Place:
    """Where and how a session runs.

    Attributes:
        device: cpu, cuda, ...; see `skerry.inference.settings.DEVICES`.
        threads: of one run on the CPU.
        cache: folder for what a runtime compiles; None keeps nothing.
    """

    device: str = "cpu"
    threads: int = 1
    cache: Path | None = None


class Session(Protocol):
    """A loaded model. Used by one thread at a time."""

    @property
    def inputs(self) -> Mapping[str, Tensor]: ...

    @property
    def outputs(self) -> Mapping[str, Tensor]: ...

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model once.

        Args:
            feeds: every input by name, with the shape and type of `inputs`. Only read, only now.

        Returns:
            Every output by name; the arrays are the caller's, no later call touches them.

        Raises:
            SessionFailed: the model or the device failed; the message is one line.
        """


class Runtime(Protocol):
    """Loads packages."""

    def load(self, package: Package, place: Place) -> Session:
        """A session of the package's model.

        Raises:
            PackageError: the model cannot be read.
            ConfigError: the device is not one that this installation knows.
            Unavailable: the device is not there now.
        """


class SessionFailed(Exception):  # noqa: N818 - a reason, said in `Detections.reason`
    """One run failed."""


def installed() -> tuple[str, ...]:
    """Names of the runtimes that are installed, without importing them."""
    return tuple(name for name in RUNTIMES if runtime_version(name))


def runtime_version(name: str) -> str:
    """Distribution and version, e.g. `onnxruntime 1.31.1`; empty where it is not installed."""
    for distribution in _DISTRIBUTIONS[name]:
        try:
            return f"{distribution} {version(distribution)}"
        except PackageNotFoundError:
            continue
    return ""


def open_session(name: str, package: Package, place: Place) -> Session:
    """Load a package with the runtime of that name, and check it against its manifest.

    Raises:
        ConfigError: the runtime or the device is not installed; names what to install.
        PackageError: the model cannot be read, or is not what its manifest says.
        Unavailable: the device is not there now.
    """
    if not runtime_version(name):
        raise ConfigError(f"runtime: {name} is not installed (pip install 'skerry[{_EXTRAS[name]}]')")
    runtime: Runtime = import_module(RUNTIMES[name]).Runtime()
    session = runtime.load(package, place)
    found = mismatches(package.manifest, session)
    if found:
        raise PackageError("\n".join(f"{package.folder}: {text}" for text in found))
    return session


def mismatches(manifest: Manifest, session: Session) -> list[str]:
    """Where the loaded model is not what the manifest says; empty when it is."""
    spec = manifest.input
    others = (name for name in session.inputs if name != spec.name)
    found = [f"input: expected only {spec.name!r}, got {name!r} too" for name in others]
    found += _differs("input", spec.name, spec.shape, session.inputs, spec.batch > 1)
    have = session.inputs.get(spec.name)
    if have is not None and have.dtype != spec.dtype:
        found.append(f"input {spec.name!r}: expected {spec.dtype}, got {have.dtype} in the model")
    for output in manifest.outputs:
        found += _differs("output", output.name, output.shape, session.outputs, spec.batch > 1)
    return found


def _differs(
    role: str, name: str, shape: tuple[int, ...], tensors: Mapping[str, Tensor], batched: bool
) -> list[str]:
    """A manifest's shape of one frame against the model's."""
    if name not in tensors:
        return [f"{role} {name!r}: expected it in the model, got {', '.join(tensors)}"]
    have = tensors[name].shape
    fits = len(have) == len(shape) and all(h is None or w in (0, h) for w, h in zip(shape, have, strict=True))
    if not fits:
        return [f"{role} {name!r}: expected {list(shape)}, got {_show(have)} in the model"]
    if batched and have[0] is not None:
        return [f"{role} {name!r}: expected a dynamic batch (input.batch is above 1), got {_show(have)}"]
    return []


def _show(shape: tuple[int | None, ...]) -> str:
    return f"[{', '.join('?' if n is None else str(n) for n in shape)}]"


def zeros(session: Session) -> dict[str, Array]:
    """Feeds of the right shape and type, all 0, batch 1: for warming up."""
    return {
        name: np.zeros([n or 1 for n in tensor.shape], tensor.dtype)
        for name, tensor in session.inputs.items()
    }


def first_line(error: BaseException) -> str:
    """An error as one line of at most 200 characters, for a reason."""
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:200]
