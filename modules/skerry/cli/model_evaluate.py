"""`skerry model evaluate`: how good a package is on a labelled folder, on each runtime that is installed."""

from __future__ import annotations

import argparse
import json
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skerry.errors import ConfigError, PackageError
from skerry.models import package as packages
from skerry.models.manifest import REFERENCE

if TYPE_CHECKING:
    from skerry.models.datasets import Dataset


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parser of `skerry model evaluate`."""
    parser = commands.add_parser(
        "evaluate",
        help="how good a package is on labelled pictures",
        description="Run a package on a labelled folder (COCO, Pascal VOC, or a folder of pictures a label) "
        "through its own pre- and post-processing: mAP50 and mAP50-95, each label, errors at the operating "
        "threshold; top-1 for classifiers. Every variant on every runtime that is installed, side by side.",
        epilog="example: skerry model evaluate build/parts labelled/ --least-map50 0.9",
    )
    parser.add_argument("package", type=Path, metavar="PACKAGE", help="folder of the package")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="labelled pictures")
    parser.add_argument(
        "--runtime", action="append", default=[], metavar="NAME", help="some runtimes only; may be repeated"
    )
    parser.add_argument(
        "--form", action="append", default=[], metavar="NAME",
        help="some of its variants only, or `reference`; may be repeated",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="device to run on (default cpu)")
    parser.add_argument(
        "--threshold", type=float, default=None, metavar="S", help="operating score (default: the package's)"
    )
    parser.add_argument(
        "--least-map50", type=float, default=None, metavar="X", help="exit with 65 below this, on any runtime"
    )
    parser.add_argument(
        "--least-top1", type=float, default=None, metavar="X", help="the same for classifiers"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate; returns the exit code.

    Raises:
        ConfigError: the folder, a runtime or a label is wrong.
        PackageError: the package is bad, or less good than was asked for.
    """
    try:
        datasets: Any = import_module("skerry.models.datasets")
        installed: Any = import_module("skerry.inference.runtimes").installed
        devices: Any = import_module("skerry.inference.settings").DEVICES
        evaluated: Any = import_module("skerry.models.judging").evaluated
    except ModuleNotFoundError as error:
        raise ConfigError(f"model evaluate needs {error.name} (pip install 'skerry[inference]')") from error
    package = packages.load(arguments.package)
    dataset: Dataset = datasets.read(arguments.folder)
    strangers = sorted(set(dataset.labels) - set(package.labels))
    if not set(dataset.labels) & set(package.labels):
        raise ConfigError(
            f"{arguments.folder}: expected labels of the model ({', '.join(package.labels)}), "
            f"got {', '.join(strangers)}"
        )
    names = arguments.runtime or [name for name in installed() if arguments.device in devices[name]]
    if not names:
        raise ConfigError(f"--device: no installed runtime knows {arguments.device}")
    results = {
        name if form == REFERENCE else f"{name} {form}": evaluated(
            name, package, dataset, form=form, device=arguments.device, threshold=arguments.threshold
        )
        for name in names
        for form in (arguments.form or package.forms_for(name))
        if form in package.forms_for(name)
    }
    if not results:
        raise ConfigError(
            f"--form: expected one that {'/'.join(names)} may load, got {', '.join(arguments.form)}"
        )
    if arguments.json:
        print(
            json.dumps(
                {"package": package.title, "form": dataset.form, "strangers": strangers, "runtimes": results}
            )
        )
    else:
        _print(package, dataset, strangers, results)
    _gate(results, arguments)
    return 0


def _print(
    package: packages.Package, dataset: Dataset, strangers: list[str], results: dict[str, Any]
) -> None:
    print(f"{package.title} on {len(dataset.pictures)} pictures ({dataset.form})")
    if strangers:
        print(f"labels that the model does not know are not looked at: {', '.join(strangers)}")
    for runtime, its in results.items():
        if "top1" in its:
            print(f"{runtime:24} top-1 {its['top1']:.4f}  {its['ms']:.1f} ms a picture")
            continue
        both = f"mAP50 {_figure(its['map50'])}  mAP50-95 {_figure(its['map'])}"
        print(f"{runtime:24} {both}  {its['ms']:.1f} ms a picture")
        head = ("objects", "AP50", "AP", "right", "wrong", "missed")
        print(f"  {'label':16}{''.join(f'{name:>8}' for name in head)}  at score {its['threshold']:g}")
        for label, one in its["labels"].items():
            errors = (one["right"], one["wrong"], one["missed"])
            row = (one["truths"], _figure(one["ap50"]), _figure(one["ap"]), *errors)
            print(f"  {label:16}{''.join(f'{value:>8}' for value in row)}")


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _gate(results: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Refuse what is less good than was asked for."""
    found = []
    for name, least in (("map50", arguments.least_map50), ("top1", arguments.least_top1)):
        for runtime, its in results.items() if least is not None else ():
            got = its.get(name)
            if got is None or got < least:
                found.append(f"{runtime}: {name}: expected at least {least:g}, got {_figure(got)}")
    if found:
        raise PackageError("\n".join(found))
