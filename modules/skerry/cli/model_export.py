"""`skerry model export`, and the part of `import` that reads MLflow's file store."""

from __future__ import annotations

import argparse
import json
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skerry.errors import ConfigError, Unavailable

if TYPE_CHECKING:
    from skerry.models.mlflow import Exported, Found
    from skerry.models.package import Package

Subparsers = argparse._SubParsersAction  # noqa: SLF001 - what add_subparsers returns has no public name


def add_command(commands: Subparsers[argparse.ArgumentParser]) -> None:
    """Register `export`; it sets `func`, which returns the exit code."""
    export = commands.add_parser(
        "export",
        help="register a package in MLflow's file store",
        description="Register a package as the next version of a model of its name in MLflow's file store, "
        "with all of its files. What is registered already is not registered again.",
        epilog="example: skerry model export models/parts --mlflow mlruns",
    )
    export.add_argument(
        "package", type=Path, metavar="PACKAGE", help="folder of the package, or an image layout"
    )
    export.add_argument("--mlflow", type=Path, required=True, metavar="DIR", help="MLflow's file store")
    export.add_argument("--digest", metavar="HEX", help="which package of a layout with several")
    export.add_argument("--json", action="store_true", help="print one JSON object")
    export.set_defaults(func=_export)


def add_source(parser: argparse.ArgumentParser) -> None:
    """What `import` takes from a file store in place of a file."""
    parser.add_argument("--mlflow", type=Path, metavar="DIR", help="MLflow's file store, in place of a file")
    parser.add_argument("--model", metavar="NAME", dest="registered", help="the registered model in it")
    parser.add_argument(
        "--version", metavar="N|ALIAS", dest="number", default="", help="its version (default: the newest)"
    )


def _export(arguments: argparse.Namespace) -> int:
    try:
        done: Exported = _mlflow().export(
            arguments.package, arguments.mlflow, now_ms=int(time.time() * 1000), digest=arguments.digest
        )
    except OSError as error:
        raise Unavailable(f"{error.filename or arguments.mlflow}: {error.strerror}") from error
    report = {
        "model": done.name, "version": done.number, "title": done.title, "digest": done.digest,
        "folder": str(done.folder), "new": done.new,
    }  # fmt: skip
    if arguments.json:
        print(json.dumps(report))
    else:
        was = "" if done.new else ", as it was already"
        print(f"{done.title} -> {arguments.mlflow}: model {done.name}, version {done.number}{was}")
    return 0


def source(arguments: argparse.Namespace) -> Package | None:
    """What `import` has to work with, of a file store: a package, or `arguments.model` set to the file.

    Raises:
        ConfigError: neither a file nor a store was named, or both.
    """
    if arguments.mlflow is None:
        if arguments.model is None or arguments.registered or arguments.number:
            raise ConfigError("model import: expected FILE.onnx, or --mlflow DIR --model NAME")
        return None
    if arguments.model is not None or not arguments.registered:
        raise ConfigError("model import: expected --mlflow DIR with --model NAME, and no file")
    mlflow = _mlflow()
    found: Found = mlflow.find(arguments.mlflow, arguments.registered, arguments.number)
    if found.package is None:
        arguments.model = found.onnx
        if arguments.manifest is None and arguments.name is None:
            arguments.name = arguments.registered
        return None
    try:
        taken: Package = mlflow.take(found, arguments.out, force=arguments.force)
    except OSError as error:
        raise Unavailable(f"{error.filename or arguments.out}: {error.strerror}") from error
    report = {"package": str(taken.folder), "title": taken.title, "from": str(found.folder), "changes": []}
    print(json.dumps(report) if arguments.json else f"{taken.title} -> {taken.folder}, as it was exported")
    return taken


def _mlflow() -> Any:
    try:
        return import_module("skerry.models.mlflow")
    except ModuleNotFoundError as error:
        raise ConfigError(f"MLflow's file store needs {error.name} (pip install 'skerry[cli]')") from error
