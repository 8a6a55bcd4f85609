"""`skerry model build`: a package from a trained model and a spec, with everything measured that it ships."""

from __future__ import annotations

import argparse
import json
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skerry.errors import ConfigError
from skerry.models import layout

if TYPE_CHECKING:
    from skerry.models.building.build import Built


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parser of `skerry model build`."""
    parser = commands.add_parser(
        "build",
        help="a package of a trained model, by a spec, with what every form of it costs",
        description="Make the forms of a model that a spec asks for: ONNX in 32, 16 and 8 bits, OpenVINO's "
        "format in 16 and 8. Each goes through gates on real inputs and is judged on labelled pictures, on "
        "every runtime that is installed; what loses more than the spec allows is refused, and ends the "
        "build with 65 unless the spec says otherwise. The same spec gives the same package; times stand "
        "beside it, in DIR.report.json, DIR.report.md and DIR.report.svg.",
        epilog="example: skerry model build sites/models/parts.build.yaml --out build/parts",
    )
    parser.add_argument("spec", type=Path, metavar="SPEC.yaml", help="docs/model-build.md says what is in it")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the new package")
    parser.add_argument("--layout", type=Path, metavar="DIR", help="pack it into this OCI image layout too")
    parser.add_argument("--force", action="store_true", help="replace the package that is there")
    parser.add_argument("--quiet", action="store_true", help="tell nothing on the way")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Build; returns the exit code.

    Raises:
        ConfigError: the spec is wrong, or `--out` is taken.
        PackageError: something is refused.
        Unavailable: an emulator that the spec needs is not installed.
    """
    try:
        building: Any = import_module("skerry.models.building.build")
        report: Any = import_module("skerry.models.building.report")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"model build needs {error.name} (pip install 'skerry[models,inference,cli]')"
        ) from error
    begin = time.monotonic()

    def say(text: str) -> None:
        if not arguments.quiet:
            print(f"{time.monotonic() - begin:6.1f} s  {text}", file=sys.stderr, flush=True)

    built: Built = building.build(arguments.spec, arguments.out, say, force=arguments.force)
    if arguments.layout is not None:
        layout.pack(arguments.out, arguments.layout, security_epoch=built.record.security_epoch)
    plain = report.plain(built.record, built.ms, built.digest)
    for suffix, content in (
        ("json", json.dumps(plain, indent=2) + "\n"),
        (
            "md",
            report.text(built.record, built.ms).replace(report.PICTURE, _beside(arguments.out, "svg").name),
        ),
        ("svg", report.picture(built.record, built.ms)),
    ):
        _beside(arguments.out, suffix).write_text(content, encoding="utf-8")
    if arguments.json:
        print(json.dumps(plain))
        return 0
    print(report.table(built.record, built.ms))
    print(f"{built.package.title}: {built.package.folder}  sha256:{built.digest}")
    return 0


def _beside(out: Path, suffix: str) -> Path:
    return out.with_name(f"{out.name}.report.{suffix}")
