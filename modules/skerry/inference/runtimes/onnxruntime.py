"""ONNX Runtime, with its execution providers as devices.

Source: onnxruntime.ai, "Thread management" and "Execution providers".
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

# The wheels of 1.31 report to their makers over HTTPS, from the import on; this module talks to nobody.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime as ort

from skerry.errors import ConfigError, PackageError, Unavailable
from skerry.inference.runtimes import Array, Place, SessionFailed, Tensor, first_line
from skerry.models.package import Package

_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
_INSTALL = {
    "cpu": "onnxruntime",
    "cuda": "onnxruntime-gpu",
    "tensorrt": "onnxruntime-gpu and TensorRT",
    "openvino": "onnxruntime-openvino",
}
_ERRORS_ONLY = 3


class OnnxSession:
    """A `Session` of ONNX Runtime."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self.inputs = {i.name: _tensor(i) for i in session.get_inputs()}
        self.outputs = {o.name: _tensor(o) for o in session.get_outputs()}
        self._names = list(self.outputs)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        try:
            return dict(zip(self._names, self._session.run(self._names, dict(feeds)), strict=True))
        except Exception as error:
            raise SessionFailed(first_line(error)) from error


class Runtime:
    """Loads packages with ONNX Runtime."""

    def load(self, package: Package, place: Place) -> OnnxSession:
        ort.set_default_logger_severity(_ERRORS_ONLY)
        provider = _PROVIDERS[place.device]
        if provider not in ort.get_available_providers():
            raise ConfigError(
                f"device: {place.device} is not in this onnxruntime {ort.__version__} (pip install "
                f"{_INSTALL[place.device]} in place of onnxruntime; it has "
                f"{', '.join(k for k, p in _PROVIDERS.items() if p in ort.get_available_providers())})"
            )
        if place.device in ("cuda", "tensorrt") and hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # CUDA and cuDNN from their wheels, where they are no system libraries
        try:
            session = ort.InferenceSession(
                str(package.model), _options(place), providers=_chain(place, provider)
            )
        except Exception as error:
            if place.device != "cpu":
                raise Unavailable(
                    f"device: {place.device}: cannot load {package.title}: {first_line(error)} "
                    "(is the driver there?)"
                ) from error
            raise PackageError(f"{package.model}: onnxruntime cannot load it: {first_line(error)}") from error
        # ONNX Runtime goes on with the CPU when a provider cannot start, and only logs it.
        used = session.get_providers()[0]
        if used != provider:
            raise Unavailable(f"device: expected {provider}, got {used} (is the driver there?)")
        session.disable_fallback()
        return OnnxSession(session)


def _options(place: Place) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = place.threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # as fast without, and up to 6 MB smaller
    # Idle threads of the pool spin by default. With two threads at 15 fps that took 60 ms of CPU time a
    # frame instead of 14 (docs/inference.md), from processes that share these cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _chain(place: Place, provider: str) -> list[Any]:
    """The provider with its options, and those it needs for nodes that it cannot run."""
    settings: dict[str, Any] = {}
    if place.device == "cuda":
        settings = {"use_tf32": 0}  # 10-bit mantissas would move scores between devices
    if place.device == "tensorrt" and place.cache is not None:
        place.cache.mkdir(parents=True, exist_ok=True)
        settings = {
            "trt_engine_cache_enable": True,
            "trt_engine_cache_path": str(place.cache),
            "trt_timing_cache_enable": True,
            "trt_timing_cache_path": str(place.cache),
        }
    chain: list[Any] = [(provider, settings) if settings else provider]
    if place.device == "tensorrt":
        chain.append(("CUDAExecutionProvider", {"use_tf32": 0}))
    return chain if place.device == "cpu" else [*chain, "CPUExecutionProvider"]


def _tensor(node: Any) -> Tensor:
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    dtype = {"float": "float32", "double": "float64"}.get(kind, kind)
    return Tensor(tuple(n if isinstance(n, int) and n > 0 else None for n in node.shape), dtype)
