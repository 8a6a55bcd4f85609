"""`skerry bench`: speed and memory, measured side by side with the limit. Never part of the tests."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Figures = dict[str, Any]


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `bench` and what it measures."""
    bench = commands.add_parser(
        "bench",
        help="measure speed and memory on this machine",
        description="Measure on this machine, several times, alternating with the limit it is compared to; "
        "report medians. Machines are noisy: trust ratios of one run more than figures of two.",
    )
    kinds = bench.add_subparsers(title="what to measure", metavar="WHAT", required=True)
    for name, text, func in (
        ("pipeline", "the five-process suite against one hand-written script", _pipeline),
        ("bus", "4 cameras x 15 fps x 300 objects a message through decision", _bus),
        ("buffer", "the store against raw write + fdatasync and its peers, and the way through it", _buffer),
        ("uplink", "the uplink between two brokers, fed as fast as it takes, link by link", _uplink),
        ("link", "each link against a stand-in of its far end, beside the bare client", _link),
        ("inference", "every installed runtime on one package", _inference),
        (
            "models",
            "what it costs to deliver, exchange and watch models, and to run each form of one",
            _models,
        ),
        ("swap", "models exchanged under load: gaps between results, CPU, memory", _swap),
    ):
        parser = kinds.add_parser(name, help=text, description=text.capitalize() + ".")
        parser.add_argument("--json", action="store_true", help="print one JSON object, the last line")
        parser.add_argument(
            "--runs", type=int, default=3, metavar="N", help="repetitions; medians are reported"
        )
        if name in ("pipeline", "inference", "models", "swap"):
            parser.add_argument(
                "--package", type=Path, metavar="DIR", help="model package (default: the demo's)"
            )
        if name == "pipeline":
            parser.add_argument(
                "--video", type=Path, metavar="FILE", help="video (default: the belt, rendered)"
            )
            parser.add_argument(
                "--seconds", type=float, default=30.0, metavar="S", help="length of the latency part"
            )
        if name in ("buffer", "models"):
            parser.add_argument(
                "--folder", type=Path, metavar="DIR", help="on the disk to measure (default: the current one)"
            )
        if name == "models":
            _add_models(parser)
        if name == "buffer":
            parser.add_argument("--quick", action="store_true", help="everything smaller, in half a minute")
        if name == "link":
            parser.add_argument("--events", type=int, default=20_000, metavar="N", help="events in a turn")
            parser.add_argument(
                "--outage", type=float, default=0.0, metavar="S",
                help="take each far end away for so long, and time the way back (default: not at all)",
            )  # fmt: skip
        if name in ("models", "swap"):
            swaps = 50 if name == "swap" else 20
            parser.add_argument("--swaps", type=int, default=swaps, metavar="N", help="exchanges in a run")
        if name == "swap":
            parser.add_argument(
                "--runtime", default="onnxruntime", metavar="NAME", help="what runs the model"
            )
        if name == "bus":
            parser.add_argument("--seconds", type=float, default=20.0, metavar="S", help="length of one run")
        parser.set_defaults(func=lambda arguments, func=func: _report(func, arguments))


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mb", type=int, default=100, metavar="N", help="size of the model that is installed"
    )
    parser.add_argument(
        "--labelled", type=Path, metavar="DIR", help="labelled pictures, to judge the forms of the package on"
    )
    parser.add_argument(
        "--part", action="append", default=[], choices=("install", "swap", "watching", "forms"),
        help="only this; may be repeated (default: all)",
    )  # fmt: skip


def _report(measure: Callable[[argparse.Namespace], Figures], arguments: argparse.Namespace) -> int:
    figures = measure(arguments)
    if arguments.json:
        print(json.dumps(figures))
    elif measure is _buffer:
        _print_table(figures)
    else:
        _print(figures)
    return 0


def _print_table(figures: Figures) -> None:
    from rich.console import Console  # noqa: PLC0415 - each benchmark imports what it needs

    from skerry.cli import bench_buffer  # noqa: PLC0415 - each benchmark imports what it needs

    console = Console()
    # A file is as wide as what is written to it; a screen is what it is.
    Console(width=console.width if console.is_terminal else 180).print(bench_buffer.table(figures))


def _print(figures: Figures, indent: int = 0) -> None:
    for name, value in figures.items():
        if isinstance(value, dict):
            print(f"{' ' * indent}{name}")
            _print(value, indent + 2)
        else:
            shown = f"{value:.3g}" if isinstance(value, float) and abs(value) < 10 else value
            shown = f"{value:.1f}" if isinstance(value, float) and abs(value) >= 10 else shown
            print(f"{' ' * indent}{name:<32} {shown}")
    sys.stdout.flush()


def _pipeline(arguments: argparse.Namespace) -> Figures:
    from skerry.cli import bench_pipeline  # noqa: PLC0415 - each benchmark imports what it needs

    return bench_pipeline.run(
        video=arguments.video, package=arguments.package, runs=arguments.runs, seconds=arguments.seconds
    )


def _bus(arguments: argparse.Namespace) -> Figures:
    from skerry.cli import bench_bus  # noqa: PLC0415 - each benchmark imports what it needs

    return bench_bus.run(seconds=arguments.seconds, runs=arguments.runs)


def _buffer(arguments: argparse.Namespace) -> Figures:
    from skerry.cli import bench_buffer  # noqa: PLC0415 - each benchmark imports what it needs

    began = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {line}", file=sys.stderr)

    size = bench_buffer.QUICK if arguments.quick else bench_buffer.Size(rounds=3 * arguments.runs)
    return bench_buffer.run(size=size, folder=arguments.folder, say=say)


def _uplink(arguments: argparse.Namespace) -> Figures:
    from skerry.cli import bench_uplink  # noqa: PLC0415 - each benchmark imports what it needs

    return bench_uplink.run(runs=arguments.runs)


def _link(arguments: argparse.Namespace) -> Figures:
    from skerry.cli import bench_link  # noqa: PLC0415 - each benchmark imports what it needs

    began = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {line}", file=sys.stderr)

    return bench_link.run(runs=arguments.runs, count=arguments.events, outage_s=arguments.outage, say=say)


def _inference(arguments: argparse.Namespace) -> Figures:
    from skerry.cli import bench_inference  # noqa: PLC0415 - each benchmark imports what it needs

    return bench_inference.run(package=arguments.package, runs=arguments.runs)


def _swap(arguments: argparse.Namespace) -> Figures:
    from skerry.cli import bench_swap  # noqa: PLC0415 - each benchmark imports what it needs

    return bench_swap.run(package=arguments.package, swaps=arguments.swaps, runtime=arguments.runtime)


def _models(arguments: argparse.Namespace) -> Figures:
    parts = arguments.part or ["install", "swap", "watching", "forms"]
    package = arguments.package or Path(__file__).resolve().parents[3] / "models" / "parts"
    figures: Figures = {}
    if "install" in parts:
        from skerry.cli import bench_models  # noqa: PLC0415 - each benchmark imports what it needs

        figures["install"] = bench_models.run(
            runs=arguments.runs, megabytes=arguments.mb, folder=arguments.folder
        )
    if "swap" in parts:
        from skerry.cli import bench_swap  # noqa: PLC0415 - each benchmark imports what it needs

        figures["swap"] = bench_swap.run(package=package, swaps=arguments.swaps)
    if "watching" in parts or "forms" in parts:
        from skerry.cli import bench_watching  # noqa: PLC0415 - each benchmark imports what it needs

        if "watching" in parts:
            figures["watching"] = bench_watching.run(package, runs=arguments.runs)
        if "forms" in parts:
            figures["forms"] = bench_watching.forms(package, arguments.labelled)
    return figures
