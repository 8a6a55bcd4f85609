"""OpenVINO on CPU, GPU and NPU.

Source: docs.openvino.ai, "Performance hints" and "Model caching".
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from skerry.errors import PackageError, Unavailable
from skerry.inference.runtimes import Array, Place, SessionFailed, Tensor, first_line
from skerry.models.package import Package


def _import_openvino() -> ModuleType:
    """Import OpenVINO without its model converter.

    The converter's import sends a usage event to the vendor and writes an identifier into the home
    folder. OpenVINO works on when the converter cannot be imported; it also saves 14 MB and 0.1 s.
    """
    hidden = "openvino.tools.ovc"
    if "openvino" not in sys.modules and hidden not in sys.modules:
        sys.modules[hidden] = None  # type: ignore[assignment] # documented: makes its import fail
        try:
            import openvino  # noqa: PLC0415 - only now, with the converter hidden
        finally:
            del sys.modules[hidden]
    else:
        import openvino  # noqa: PLC0415 - someone else imported it already
    module: ModuleType = openvino
    return module


ov = _import_openvino()


class OpenVinoSession:
    """A `Session` of OpenVINO.

    Args:
        compiled: the model.
        known: names that are preferred. A tensor has several where a conversion next to it was folded away.
    """

    def __init__(self, compiled: Any, known: Collection[str] = ()) -> None:
        self._request = compiled.create_infer_request()
        self.inputs = {_name(p, known): _tensor(p) for p in compiled.inputs}
        self.outputs = {_name(p, known): _tensor(p) for p in compiled.outputs}
        self._names = list(self.outputs)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        try:
            # Copied: the module decodes one frame's outputs while the session runs on the next.
            results = self._request.infer(dict(feeds), share_inputs=True, share_outputs=False)
            return {name: results[n] for n, name in enumerate(self._names)}
        except Exception as error:
            raise SessionFailed(first_line(error)) from error


class Runtime:
    """Loads packages with OpenVINO."""

    def load(self, package: Package, place: Place) -> OpenVinoSession:
        core = ov.Core()
        device = place.device.upper()
        if device != "CPU":  # asking loads the plug-in of every device: 20 MB
            _check_device(core, device)
        if place.cache is not None:
            place.cache.mkdir(parents=True, exist_ok=True)
            core.set_property({"CACHE_DIR": str(place.cache)})
        known = {package.manifest.input.name, *(each.name for each in package.manifest.outputs)}
        try:
            return OpenVinoSession(core.compile_model(str(package.model), device, _options(place)), known)
        except Exception as error:
            raise PackageError(f"{package.model}: openvino cannot load it: {first_line(error)}") from error


def _check_device(core: Any, device: str) -> None:
    there = core.available_devices
    if not any(name.split(".")[0] == device for name in there):
        raise Unavailable(
            f"device: expected one of {', '.join(there).lower()}, got {device.lower()} (install its driver)"
        )


def _options(place: Place) -> dict[str, Any]:
    options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if place.device == "cpu":
        options |= {
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": place.threads,
            "ENABLE_CPU_PINNING": False,  # other processes share these cores
            "INFERENCE_PRECISION_HINT": "f32",  # not bf16 where the CPU has it: the same numbers everywhere
        }
    return options


def _name(port: Any, known: Collection[str]) -> str:
    return str(next((name for name in sorted(port.get_names()) if name in known), port.get_any_name()))


def _tensor(port: Any) -> Tensor:
    shape = tuple(d.get_length() if d.is_static else None for d in port.get_partial_shape())
    return Tensor(shape, str(np.dtype(port.get_element_type().to_dtype())))
