"""The command line. `main` parses arguments and calls one function per command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from skerry import __version__
from skerry.errors import ConfigError, SkerryError

_EPILOG = """\
start here:
  skerry demo                      a rendered conveyor belt through all five modules, 30 s
  skerry check sites/demo.yaml     every error of a site file at once
  skerry run sites/demo.yaml       the same site until Ctrl-C

exit codes: 0 done, 65 bad model package or batch, 69 something is unavailable,
            70 internal error or a ledger that does not balance, 78 bad configuration
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.func(arguments))
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return error.exit_code
    except SkerryError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="skerry",
        description="Camera AI at the edge that loses nothing when the link drops.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"skerry {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo(commands)
    _add_run(commands)
    from skerry.cli import (  # noqa: PLC0415 - they only add parsers
        bench,
        buffer,
        certs,
        check,
        deploy,
        model,
        render,
        unbatch,
    )

    _add_set(check.add_command(commands))
    buffer.add_commands(commands)
    bench.add_commands(commands)
    for parser_of_site in model.add_commands(commands):
        _add_set(parser_of_site)
    unbatch.add_command(commands)
    _add_set(certs.add_command(commands))
    _add_set(render.add_command(commands))
    for parser_of_site in deploy.add_command(commands):
        _add_set(parser_of_site)
    return parser


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = commands.add_parser(
        "demo",
        help="the bundled site, end to end, nothing else needed",
        description="Run the bundled site: a rendered conveyor belt, a small detector, four rules, a buffer "
        "on disk and a far end, as five processes and a broker. Prints the loss ledger and leaves events, "
        "summary and annotated pictures in the output folder.",
    )
    demo.add_argument(
        "--seconds", type=_positive, default=30.0, metavar="S", help="how long to run (default 30)"
    )
    demo.add_argument(
        "--seed", type=int, default=None, metavar="N", help="another belt (default: the site's, 1)"
    )
    demo.add_argument("--no-pictures", action="store_true", help="skip the contact sheet and the clip")
    _add_output(demo, "skerry-out/demo")
    demo.set_defaults(func=_demo)


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    run = commands.add_parser(
        "run",
        help="run a site file on this machine",
        description="Run every module of a site as a process of this machine, restart what dies, and drain "
        "on Ctrl-C. Ends by itself when every camera is a file that has ended. The output folder keeps what "
        "was not delivered for the next run.",
        epilog="example: skerry run sites/people.yaml --set video=people.mp4 --set package=build/fastestdet",
    )
    run.add_argument("site", type=Path, metavar="SITE", help="the site file, YAML")
    run.add_argument("--seconds", type=_positive, default=None, metavar="S", help="stop after this long")
    run.add_argument("--pictures", action="store_true", help="keep an annotated contact sheet and clip")
    run.add_argument(
        "--secure", action="store_true",
        help="TLS on the bus, with a certificate and access rules for each module (needs Mosquitto)",
    )  # fmt: skip
    _add_set(run)
    _add_output(run, "skerry-out/NAME of the site")
    run.set_defaults(func=_run)


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", dest="arguments", type=_assignment,
        help="a value for an argument that the site file declares; may be repeated",
    )  # fmt: skip


def _add_output(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--json", action="store_true", help="print the result as one JSON object, the last line"
    )
    parser.add_argument(
        "--out", type=Path, default=None, metavar="DIR", help=f"output folder (default {default})"
    )


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def _assignment(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
    return name, value


def _demo(arguments: argparse.Namespace) -> int:
    from skerry.cli import demo  # noqa: PLC0415 - each command imports what it needs

    return demo.run(
        seconds=arguments.seconds, seed=arguments.seed, as_json=arguments.json,
        out=arguments.out, pictures=not arguments.no_pictures,
    )  # fmt: skip


def _run(arguments: argparse.Namespace) -> int:
    from rich.console import Console  # noqa: PLC0415 - each command imports what it needs

    from skerry.cli.run import Options, report, run_site  # noqa: PLC0415 - each command imports what it needs
    from skerry.deploy.site import load_site  # noqa: PLC0415 - each command imports what it needs

    site = load_site(arguments.site, dict(arguments.arguments))
    options = Options(
        out=arguments.out or Path("skerry-out") / site.site, seconds=arguments.seconds,
        json=arguments.json, pictures=arguments.pictures, secure=arguments.secure,
    )  # fmt: skip
    console = Console(stderr=arguments.json)
    return report(run_site(site, options, console), options, console)
