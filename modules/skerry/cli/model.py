"""`skerry model`: import, inspect and golden; baseline is in a file of its own."""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from skerry.cli import (
    model_audit,
    model_baseline,
    model_bench,
    model_build,
    model_diff,
    model_evaluate,
    model_export,
    model_install,
    model_layout,
    model_quantise,
    model_readiness,
    model_registry,
    model_samples,
    model_trust,
)
from skerry.errors import ConfigError, PackageError
from skerry.models import package as packages
from skerry.models.layout import is_layout

if TYPE_CHECKING:
    from skerry.inference.measure import Measurement
    from skerry.models.importing import Imported
    from skerry.models.manifest import Input
    from skerry.models.package import Package
    from skerry.models.short import Short

_RANDOM, _PICTURES = 2, 3
"""Inputs that a cleaned-up graph is compared on: noise, and seeded pictures."""


def add_commands(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
) -> tuple[argparse.ArgumentParser, ...]:
    """Register `model` and its subcommands; each sets `func`, which returns the exit code.

    Returns:
        The parsers of those that take a site file.
    """
    model = subparsers.add_parser("model", help="make and inspect model packages")
    commands = model.add_subparsers(title="commands", metavar="COMMAND", required=True)
    inspect = commands.add_parser(
        "inspect",
        help="everything a package says, checked and measured",
        description="Verify a package, load it in every runtime that is installed, and measure each. "
        "Of an OCI image layout, verify its packages and list their files.",
    )
    inspect.add_argument(
        "package", type=Path, metavar="PACKAGE", help="folder of the package, or of a layout"
    )
    model_layout.add_digest(inspect)
    inspect.add_argument("--threads", type=_threads, default=None, metavar="N", help="threads of one run")
    inspect.add_argument("--device", default="cpu", help="device to measure on (default cpu)")
    inspect.add_argument("--no-measure", action="store_true", help="read and verify only")
    inspect.add_argument(
        "--cache", type=Path, default=None, metavar="DIR",
        help="a module's cache folder: show what it remembers, measure and remember what it does not",
    )  # fmt: skip
    inspect.add_argument("--json", action="store_true", help="print one JSON object")
    inspect.set_defaults(func=_inspect)
    model_layout.add_commands(commands)
    golden = commands.add_parser(
        "golden",
        help="keep what a package sees in pictures, for devices to compare with",
        description="Run a package on pictures, and write them and what it sees into the package. A device "
        "whose answers differ does not serve with it.",
    )
    golden.add_argument("package", type=Path, metavar="PACKAGE", help="folder of the package")
    golden.add_argument(
        "images", type=Path, nargs="+", metavar="IMAGE", help="pictures, or folders of pictures"
    )
    golden.add_argument("--json", action="store_true", help="print one JSON object")
    golden.set_defaults(func=_golden)
    make = commands.add_parser(
        "import",
        help="make a package of a foreign ONNX file, or of a model in MLflow",
        description="Clean up the graph, prove that it still answers the same, and write a package. A model "
        "in MLflow's file store that was exported from here comes back as it was.",
        epilog="example: skerry model import fastestdet.onnx --manifest sites/models/fastestdet.yaml "
        "--labels coco.names --out build/fastestdet",
    )
    make.add_argument("model", type=Path, metavar="FILE.onnx", nargs="?")
    model_export.add_source(make)
    make.add_argument(
        "--manifest", type=Path, metavar="SHORT.yaml", help="what the file does not say of itself"
    )
    make.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the new package")
    make.add_argument("--labels", type=Path, metavar="FILE", help="labels, one a line")
    make.add_argument("--decoder", metavar="KIND", help="the decoder, with its defaults")
    make.add_argument("--name", help="the package's name (default: the file's)")
    make.add_argument("--package-version", metavar="VERSION", dest="version", help="the package's version")
    make.add_argument("--licence", help="the model's licence")
    make.add_argument("--force", action="store_true", help="replace the package that is there")
    make.add_argument("--no-measure", action="store_true", help="do not time the graph before and after")
    make.add_argument("--json", action="store_true", help="print one JSON object")
    make.set_defaults(func=_import)
    model_audit.add_command(commands)
    model_bench.add_command(commands)
    model_build.add_command(commands)
    model_diff.add_command(commands)
    model_evaluate.add_command(commands)
    model_export.add_command(commands)
    model_quantise.add_command(commands)
    model_readiness.add_command(commands)
    model_registry.add_command(commands)
    model_samples.add_command(commands)
    model_trust.add_commands(commands)
    return model_baseline.add_command(commands), model_install.add_command(commands)


def _threads(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


def _inspect(arguments: argparse.Namespace) -> int:
    if is_layout(arguments.package):
        return model_layout.inspect(arguments)
    package = packages.load(arguments.package)
    report = _describe(package)
    if not arguments.no_measure:
        report["runtimes"] = [msgspec.to_builtins(m) for m in _measured(package, arguments)]
    if arguments.json:
        print(json.dumps(report))
    else:
        _print_report(report)
    if report.get("runtimes") and all(m["error"] for m in report["runtimes"]):
        raise PackageError("\n".join(f"{m['runtime']}: {m['error']}" for m in report["runtimes"]))
    return 0


def _golden(arguments: argparse.Namespace) -> int:
    try:
        vectors = import_module("skerry.cli.model_golden")
    except ModuleNotFoundError as error:
        raise ConfigError(f"model golden needs {error.name} (pip install 'skerry[inference]')") from error
    report = vectors.make(arguments.package, arguments.images)
    if arguments.json:
        print(json.dumps(report))
        return 0
    print(f"{report['package']}: compared on {', '.join(report['runtimes'])}")
    for picture in report["pictures"]:
        print(f"  {picture['file']}  {picture['objects']:4d} objects  {picture['from']}")
    if not any(picture["objects"] for picture in report["pictures"]):
        print("  nothing is seen in any of them: this tells a good model from few bad ones")
    return 0


def _measured(package: Package, arguments: argparse.Namespace) -> tuple[Measurement, ...]:
    choose = import_module("skerry.inference.choose")
    cores = import_module("skerry.inference.cores")
    runtimes = import_module("skerry.inference.runtimes")
    devices = import_module("skerry.inference.settings").DEVICES
    threads = arguments.threads or cores.default_threads(cores.usable_cores())
    place = runtimes.Place(arguments.device, threads, arguments.cache)
    if arguments.cache is not None:
        found: tuple[Measurement, ...] = choose.choose(package, place).measurements
        return found
    names = [n for n in runtimes.installed() if arguments.device in devices[n]]
    if not names:
        raise ConfigError(f"--device: no installed runtime knows {arguments.device}")
    what = choose.candidates(package, arguments.device)
    measured: tuple[Measurement, ...] = choose.measure(package, place, what)
    return measured


def _describe(package: Package) -> dict[str, Any]:
    manifest = package.manifest
    report: dict[str, Any] = msgspec.to_builtins(manifest)
    report["folder"] = str(package.folder)
    report["labels"] = list(package.labels)
    report["sha256_ok"] = True  # `load` has compared it
    report["bytes"] = package.model.stat().st_size
    report["operators"] = None
    if manifest.artifact.format == "onnx":
        with contextlib.suppress(ModuleNotFoundError):
            importing = import_module("skerry.models.importing")
            report["operators"] = importing.operators(package.model)
    return report


def _print_report(report: dict[str, Any]) -> None:
    spec, decoder = report["input"], report["decoder"]
    operators = report["operators"]
    counted = "unknown (pip install 'skerry[models]')"
    if operators is not None:
        listed = ", ".join(f"{n} {op}" for op, n in list(operators.items())[:8])
        counted = f"{sum(operators.values())} nodes: {listed}{', ...' if len(operators) > 8 else ''}"
    settings = ", ".join(f"{k} {_list(v)}" for k, v in decoder.items() if k != "kind")
    labels = report["labels"]
    shown = ", ".join(labels[:12]) + (f", ... ({len(labels)} in all)" if len(labels) > 12 else "")
    rows = [
        ("package", f"{report['name']}@{report['version']}  ({report['folder']})"),
        ("about", report["description"] or "-"),
        ("licence", report["licence"] or "not stated"),
        ("model", f"{report['artifact']['file']}, {report['bytes'] / 1000:.0f} kB"),
        ("sha256", f"ok ({report['artifact']['sha256'][:16]}...)"),
        ("operators", counted),
        ("input", f"{spec['name']}: {spec['width']} x {spec['height']} {spec['colour']}, {spec['dtype']}, "
                  f"{spec['layout']}, {spec['resize']} ({spec['interpolation']}), "
                  f"(pixel - {_list(spec['mean'])}) / {_list(spec['scale'])}"
                  + (f", batch up to {spec['batch']}" if spec["batch"] > 1 else "")),
        *(("output", f"{o['name']}: {o['shape']}") for o in report["outputs"]),
        ("decoder", f"{decoder['kind']}: {settings}"),
        ("labels", shown),
        *(("variant", _variant_text(variant)) for variant in report["variants"]),
        ("golden", _golden_text(report["golden"])),
        *(("budget", f"{k}: {v:g}") for k, v in report["budget"].items() if v is not None),
    ]  # fmt: skip
    for name, text in rows:
        print(f"{name:10} {text}")
    if "runtimes" in report:
        print()
        _print_runtimes(report["runtimes"])


def _golden_text(golden: dict[str, Any] | None) -> str:
    if golden is None:
        return "none (skerry model golden keeps some)"
    seen = sum(len(picture["objects"]) for picture in golden["pictures"])
    return f"{len(golden['pictures'])} pictures, {seen} objects"


def _variant_text(variant: dict[str, Any]) -> str:
    said = ", ".join(
        f"{one['metric']} {one['value']:.4f} ({one['delta']:+.4f}) on {one['runtime']} {one['isa']}"
        for one in variant["measured"]
    )
    who = f" for {', '.join(variant['runtimes'])}" if variant["runtimes"] else ""
    return f"{variant['name']}: {variant['file']}, {variant['precision']}{who}; {said or 'not measured'}"


def _print_runtimes(measurements: list[dict[str, Any]]) -> None:
    titles = [f"{m['version']}{'' if m['form'] == 'reference' else ' ' + m['form']}" for m in measurements]
    wide = max(24, *(len(title) for title in titles))
    print(f"{'runtime':{wide}} {'ms':>8} {'CPU ms':>8} {'load ms':>8} {'RSS MB':>7}  outputs")
    for title, m in zip(titles, measurements, strict=True):
        if m["error"]:
            print(f"{title:{wide}} {m['error']}")
        elif not m["ms"]:
            print(f"{title:{wide}} the only one installed: not measured")
        else:
            agree = "reference" if m is measurements[0] else f"differ by {m['difference']:.1e}"
            figures = f"{m['ms']:8.2f} {m['cpu_ms']:8.2f} {m['load_ms']:8.0f} {m['rss_mb']:7.0f}"
            print(f"{title:{wide}} {figures}  {agree}")


def _list(value: Any) -> str:
    if isinstance(value, list | tuple):
        return (
            ", ".join(_list(v) for v in value)
            if len(value) == 1
            else f"[{', '.join(_list(v) for v in value)}]"
        )
    return f"{value:g}" if isinstance(value, float) else str(value)


def _import(arguments: argparse.Namespace) -> int:
    if model_export.source(arguments) is not None:
        return 0
    try:
        importing = import_module("skerry.models.importing")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"model import needs {error.name} (pip install 'skerry[inference,models,cli]')"
        ) from error
    short, labels = _short(arguments)
    imported: Imported = importing.import_model(
        arguments.model, short, labels, _feeds, arguments.out, force=arguments.force
    )
    report: dict[str, Any] = {
        "package": str(imported.package.folder),
        "title": imported.package.title,
        "changes": list(imported.folded.changes),
        "nodes": list(imported.folded.nodes),
        "difference": imported.folded.difference,
    }
    if not arguments.no_measure:
        with tempfile.TemporaryDirectory(prefix="skerry-") as folder:
            original = importing.write_original(imported, arguments.model, Path(folder) / "original")
            report["ms_before"], report["ms_after"] = _both(original, imported.package)
    if arguments.json:
        print(json.dumps(report))
    else:
        _print_import(report)
    return 0


def _short(arguments: argparse.Namespace) -> tuple[Short, tuple[str, ...]]:
    """The short manifest with the command line's options over it, and the labels."""
    shorts = import_module("skerry.models.short")
    raw: dict[str, Any] = {}
    where = "options"
    if arguments.manifest is not None:
        where = str(arguments.manifest)
        _, raw = shorts.read_short(arguments.manifest)
    elif arguments.decoder is None:
        raise ConfigError("model import: expected --manifest SHORT.yaml or --decoder KIND, got neither")
    options = {"name": arguments.name, "version": arguments.version, "licence": arguments.licence}
    raw = {**raw, **{k: v for k, v in options.items() if v is not None}}
    if arguments.decoder is not None:
        raw["decoder"] = {"kind": arguments.decoder}
    short: Short = import_module("skerry.settings").parse(shorts.Short, raw, where)
    if arguments.labels is not None:
        return short, shorts.read_labels(arguments.labels)
    if isinstance(short.labels, str):
        base = arguments.manifest.parent if arguments.manifest is not None else Path()
        return short, shorts.read_labels(base / short.labels)
    return short, short.labels


def _feeds(spec: Input) -> list[dict[str, Any]]:
    """Inputs for the comparison: noise, and pictures as the pre-processing makes them."""
    numpy = import_module("numpy")
    picture = import_module("skerry.inference.measure").picture
    prepare = import_module("skerry.inference.preprocess").Preprocessor(spec)
    feeds = []
    for seed in range(_RANDOM):
        noise = numpy.random.default_rng(seed).integers(
            0, 256, (spec.height, spec.width, 3), dtype=numpy.uint8
        )
        prepare(noise)
        feeds.append({spec.name: prepare.tensor.copy()})
    for seed in range(_PICTURES):
        prepare(picture(2 * spec.width, spec.height + 40, seed))
        feeds.append({spec.name: prepare.tensor.copy()})
    return feeds


def _both(before: Package, after: Package) -> tuple[dict[str, Any], dict[str, Any]]:
    """Milliseconds of one run by runtime, of the file as it came and of the package."""
    choose = import_module("skerry.inference.choose")
    cores = import_module("skerry.inference.cores")
    runtimes = import_module("skerry.inference.runtimes")
    place = runtimes.Place("cpu", cores.default_threads(cores.usable_cores()), None)

    def by_runtime(package: Package) -> dict[str, Any]:
        return {m.runtime: m.error or m.ms for m in choose.measure(package, place, runtimes.installed())}

    return by_runtime(before), by_runtime(after)


def _print_import(report: dict[str, Any]) -> None:
    print(f"{report['title']} -> {report['package']}")
    for change in report["changes"] or ["nothing to clean up"]:
        print(f"  {change}")
    before, after = report["nodes"]
    print(f"  nodes {before} -> {after}; outputs differ by at most {report['difference']:.1e}")
    for runtime, ms in report.get("ms_before", {}).items():
        print(f"  {runtime}: {_ms(ms)} -> {_ms(report['ms_after'][runtime])}")


def _ms(value: Any) -> str:
    return f"{value:.1f} ms" if isinstance(value, float) else str(value)
