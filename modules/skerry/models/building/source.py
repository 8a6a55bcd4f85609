"""The ONNX file that a build begins with: one that is there, or one that a hook writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import onnx

from skerry.errors import ConfigError, PackageError
from skerry.models.building.record import Content, Source, Step
from skerry.models.building.spec import From
from skerry.models.fold import read_model
from skerry.models.package import digest

_BOOTSTRAP = """
import importlib.util, json, sys
file, function, out, arguments = sys.argv[1:]
spec = importlib.util.spec_from_file_location("hook", file)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
getattr(module, function)(out, **json.loads(arguments))
versions = {name: sys.modules[name].__version__ for name in ("torch", "onnx", "numpy")
            if hasattr(sys.modules.get(name), "__version__")}
print("\\n" + json.dumps({"python": sys.version.split()[0], **versions}))
"""
"""Runs in the hook's own environment, which need not know Skerry."""


def fetch(source: From, base: Path, out: Path) -> tuple[Source, Step]:
    """Write the ONNX file to `out`, as it came except for remarks.

    Args:
        source: where from.
        base: folder that its paths are relative to.
        out: file to write.

    Raises:
        ConfigError: the hook's interpreter cannot be started.
        PackageError: the hook failed, or it is no ONNX file.
    """
    raw = ""
    if source.onnx:
        path = base / source.onnx
        model, raw = read_model(path), digest(path)
        step = Step(
            name="read", tool="onnx", version=onnx.__version__,
            inputs=(Content(name=path.name, sha256=raw),),
        )  # fmt: skip
    else:
        path = base / source.python
        versions = _call(source, path, base, out)
        model = read_model(out)
        tool = "torch" if "torch" in versions else "python"
        parameters = {key: json.dumps(value) for key, value in source.arguments.items()}
        step = Step(
            name="export", tool=tool, version=versions[tool], parameters=parameters,
            inputs=(Content(name=path.name, sha256=digest(path)),),
            said=tuple(f"{name} {version}" for name, version in versions.items()),
        )  # fmt: skip
    strip(model)
    out.write_bytes(model.SerializeToString(deterministic=True))
    made = digest(out)
    said = Source(
        form="onnx" if source.onnx else "python", file=path.name, sha256=digest(path),
        function="" if source.onnx else source.function,
        # Of what a hook wrote, without its remarks: they name the folder in which it ran.
        onnx_sha256=raw if source.onnx else made,
    )  # fmt: skip
    return said, msgspec.structs.replace(step, outputs=(Content(name="source.onnx", sha256=made),))


def strip(model: onnx.ModelProto) -> None:
    """Remove what says where and by whom it was made: exporters put paths and whole call stacks there."""
    model.ClearField("doc_string")
    model.ClearField("metadata_props")
    _strip_graph(model.graph)
    for function in model.functions:
        function.ClearField("doc_string")
        function.ClearField("metadata_props")
        for node in function.node:
            _strip_node(node)


def _strip_graph(graph: onnx.GraphProto) -> None:
    for part in (graph, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    for node in graph.node:
        _strip_node(node)


def _strip_node(node: onnx.NodeProto) -> None:
    node.ClearField("doc_string")
    node.ClearField("metadata_props")
    for attribute in node.attribute:
        if attribute.HasField("g"):
            _strip_graph(attribute.g)
        for graph in attribute.graphs:
            _strip_graph(graph)


def _call(source: From, path: Path, base: Path, out: Path) -> dict[str, str]:
    """Run the hook; versions of what it used."""
    # Not resolved: an environment's interpreter is a link, and knows by its place where it is.
    interpreter = str((base / source.interpreter).absolute()) if source.interpreter else sys.executable
    command = [
        interpreter, "-c", _BOOTSTRAP, str(path.resolve()), source.function,
        str(out.resolve()), json.dumps(source.arguments),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONHASHSEED": "0", "ORT_DISABLE_TELEMETRY": "1"}
    where = f"{path}: {source.function}"
    try:
        done = subprocess.run(
            command, cwd=path.parent, env=environment, capture_output=True, text=True,
            timeout=source.timeout_s, check=False,
        )  # fmt: skip
    except OSError as error:
        raise ConfigError(
            f"from.interpreter: expected a Python, got {error.strerror} ({interpreter})"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise PackageError(f"{where}: expected an end within {source.timeout_s:g} s, got none") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise PackageError(f"{where}: failed: {last[:300]}")
    if not out.is_file():
        raise PackageError(f"{where}: expected an ONNX file at the path it is given, it wrote none")
    versions: dict[str, str] = json.loads(done.stdout.strip().splitlines()[-1])
    return versions
