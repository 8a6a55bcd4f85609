"""`skerry model quantise`: a package in 8 bits, searched for, measured, refused where it costs too much."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from skerry.errors import ConfigError, PackageError
from skerry.models import package as packages
from skerry.models.manifest import encode, files_of

if TYPE_CHECKING:
    from skerry.models.datasets import Dataset
    from skerry.models.quantisation import Recipe

REPORT = "quantisation.json"
_MOST_DEVIATION = 0.2
"""Of integer kernels from exact arithmetic, in standard deviations; rounding is a tenth of it."""
_FEWEST = 10
"""Pictures to calibrate on, and to judge by."""


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parser of `skerry model quantise`."""
    parser = commands.add_parser(
        "quantise",
        help="a package in 8 bits, with what that costs",
        description="Make an 8-bit package of a float one: calibrate on the first labelled pictures, try "
        "recipes (what stays in float, scales per tensor or per channel, how ranges are found), judge each "
        "on the other pictures, and write the first whose loss is small enough on every installed "
        "runtime. Otherwise nothing is written and the exit code is 65.",
        epilog="example: skerry model quantise models/parts labelled/ --out build/parts-int8",
    )
    parser.add_argument("package", type=Path, metavar="PACKAGE", help="folder of the float package")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="labelled pictures")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the new package")
    parser.add_argument(
        "--calibrate",
        type=int,
        default=40,
        metavar="N",
        help="pictures to calibrate on (default %(default)s); the rest judge",
    )
    parser.add_argument(
        "--most-loss", type=float, default=0.01, metavar="X",
        help="of mAP50-95 (top-1 of a classifier), absolute (default %(default)g)",
    )  # fmt: skip
    parser.add_argument("--all", action="store_true", help="judge every recipe, and take the best")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Quantise; returns the exit code.

    Raises:
        ConfigError: the folder is wrong, or `--out` is taken.
        PackageError: the package is bad, or no recipe is good enough.
    """
    try:
        quantisation: Any = import_module("skerry.models.quantisation")
        datasets: Any = import_module("skerry.models.datasets")
        judging: Any = import_module("skerry.models.judging")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"model quantise needs {error.name} (pip install 'skerry[models,inference]')"
        ) from error
    out: Path = arguments.out
    if out.exists():
        raise ConfigError(f"{out}: expected a new folder, got one that is there")
    package = packages.load(arguments.package)
    whole: Dataset = datasets.read(arguments.folder)
    n = arguments.calibrate
    if n < _FEWEST or len(whole.pictures) - n < _FEWEST:
        raise ConfigError(
            f"--calibrate: expected {_FEWEST} pictures or more, and as many left of {len(whole.pictures)}, "
            f"got {n}"
        )
    feeds = [judging.feed(package.manifest.input, picture.path) for picture in whole.pictures[:n]]
    judges = datasets.Dataset(whole.form, whole.pictures[n:])
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
        search = _Search(package, judges, feeds, Path(folder), arguments)
        found = search.run(quantisation.RECIPES)
        if found is None:
            raise PackageError(
                f"{package.folder}: no recipe loses at most {arguments.most_loss:g}: "
                + "; ".join(search.refused)
            )
        found.rename(out)
    if arguments.json:
        print(json.dumps(search.report))
    else:
        print(f"{packages.load(out).title}: {out} ({search.report['taken']})")
    return 0


class _Search:
    """The recipes, one after the other."""

    def __init__(
        self,
        package: packages.Package,
        judges: Dataset,
        feeds: Sequence[Any],
        folder: Path,
        arguments: argparse.Namespace,
    ) -> None:
        self._package, self._judges, self._feeds, self._folder = package, judges, feeds, folder
        self._most, self._all, self._talk = arguments.most_loss, arguments.all, not arguments.json
        self._evaluated: Any = import_module("skerry.models.judging").evaluated
        installed: Any = import_module("skerry.inference.runtimes").installed
        self._runtimes: list[str] = [name for name in installed() if name in ("onnxruntime", "openvino")]
        self.refused: list[str] = []
        self.report: dict[str, Any] = {"of": package.title, "calibrated_on": len(feeds), "recipes": []}

    def run(self, recipes: Sequence[Recipe]) -> Path | None:
        """The folder of the first that is good enough, or of the best of those."""
        before = {name: self._evaluated(name, self._package, self._judges) for name in self._runtimes}
        self.report |= {"judged_on": len(self._judges.pictures), "float": _short(before)}
        self._say("float", self._package.model.stat().st_size, before, "")
        best: tuple[float, Path, dict[str, Any]] | None = None
        for recipe in recipes:
            its, folder, loss = self._one(recipe, before)
            self.report["recipes"].append(its)
            if its["refused"]:
                self.refused.append(f"{recipe.title}: {its['refused']}")
            elif best is None or loss < best[0]:
                best = (loss, folder, its)
            if best is not None and not self._all:
                break
        if best is None:
            return None
        self.report["taken"] = best[2]["recipe"]
        (best[1] / REPORT).write_text(json.dumps(self.report, indent=2) + "\n", encoding="utf-8")
        return best[1]

    def _one(self, recipe: Recipe, before: dict[str, Any]) -> tuple[dict[str, Any], Path, float]:
        """Make and judge a package; what is said of it, where it is, and the largest loss."""
        quantisation: Any = import_module("skerry.models.quantisation")
        folder = self._folder / f"{len(self.report['recipes'])}"
        refused, after, loss, away = "", {}, float("inf"), 0.0
        try:
            content = quantisation.quantise(self._package.model, self._feeds, recipe)
            its = _write(self._package, content, folder)
            away = quantisation.deviation(content, self._feeds[:_FEWEST])
            after = {name: self._evaluated(name, its, self._judges) for name in self._runtimes}
            loss = max(_figure(before[name]) - _figure(after[name]) for name in self._runtimes)
            if away > _MOST_DEVIATION:
                refused = f"integers overflow on this processor ({away:.2f} standard deviations from exact)"
            elif loss > self._most:
                refused = f"loses {loss:.4f}"
        except PackageError as error:
            refused = str(error).splitlines()[0]
        size = (folder / self._package.manifest.artifact.file).stat().st_size if folder.exists() else 0
        self._say(recipe.title, size, after, refused)
        said = {
            "recipe": recipe.title, **asdict(recipe), "bytes": size, "runtimes": _short(after),
            "deviation": round(away, 4), "refused": refused,
        }  # fmt: skip
        return said, folder, loss

    def _say(self, title: str, size: int, results: dict[str, Any], refused: str) -> None:
        if not self._talk:
            return
        figures = "  ".join(f"{name} {_figure(its):.4f} {its['ms']:.1f} ms" for name, its in results.items())
        print(
            f"{title:40}{size / 1e6:>7.2f} MB  {figures}{'  refused: ' if refused else ''}{refused}",
            flush=True,
        )


def _figure(its: dict[str, Any]) -> float:
    """What a loss is counted in."""
    return float(its["top1"] if "top1" in its else its["map"] or 0.0)


def _short(results: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {key: its[key] for key in ("map50", "map", "top1", "ms") if key in its}
        for name, its in results.items()
    }


def _write(package: packages.Package, content: bytes, folder: Path) -> packages.Package:
    """The package with another model. Golden pictures and baseline are the float model's: they stay."""
    shutil.copytree(package.folder, folder)
    for file in (file for variant in package.manifest.variants for file in files_of(variant)):
        (folder / file.file).unlink(missing_ok=True)
    manifest = package.manifest
    (folder / manifest.artifact.file).write_bytes(content)
    artifact = msgspec.structs.replace(
        manifest.artifact, sha256=packages.digest(folder / manifest.artifact.file), precision="int8"
    )
    manifest = msgspec.structs.replace(
        manifest,
        artifact=artifact,
        version=f"{manifest.version}-int8",
        golden=None,
        baseline=None,
        variants=(),
    )
    (folder / packages.MANIFEST).write_bytes(encode(manifest))
    return packages.load(folder)
