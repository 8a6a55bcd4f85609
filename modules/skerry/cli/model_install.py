"""`skerry model install`: packages from a stick onto a device that is not on any network."""

from __future__ import annotations

import argparse
import json
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skerry.errors import ConfigError

if TYPE_CHECKING:
    from skerry.updater.settings import UpdaterSettings


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Register the command; returns its parser, which takes a site file."""
    install = commands.add_parser(
        "install",
        help="bring packages from a stick onto a device without a network",
        description="Verify a repository as the device's updater would, and put what it has for the slots of "
        "the site on trial. It serves after it has proved itself, which begins when the site runs. The "
        "updater must not run meanwhile; one that runs takes a stick as a folder source. In a container: "
        "python -m skerry.updater.install REPOSITORY.",
        epilog="example: skerry model install /media/stick sites/line.yaml --out skerry-out",
    )
    install.add_argument("repository", type=Path, metavar="REPOSITORY", help="a copy of the repository")
    install.add_argument("site", type=Path, metavar="SITE", help="the site file, with an updater")
    install.add_argument(
        "--out", type=Path, default=Path("skerry-out"), metavar="DIR", help="output folder of `skerry run`"
    )
    install.add_argument(
        "--slot",
        action="append",
        default=[],
        metavar="NAME",
        dest="slots",
        help="only this one; may be repeated",
    )
    install.add_argument("--json", action="store_true", help="print one JSON object")
    install.set_defaults(func=_install)
    return install


def _install(arguments: argparse.Namespace) -> int:
    installing: Any = import_module("skerry.updater.install")  # it needs tuf, which not everybody has
    settings = _settings(arguments)
    quiet = arguments.json
    done = installing.install(
        arguments.repository, settings, arguments.slots,
        (lambda _slot, _text: None) if quiet else lambda slot, text: print(f"{slot}: {text}", flush=True),
    )  # fmt: skip
    if quiet:
        slots = {
            each.slot: {
                "model": each.package.title, "digest": each.package.manifest.digest, "state": each.state
            }
            for each in done
        }  # fmt: skip
        print(json.dumps({"slots": slots}))
    else:
        print("it serves once it has proved itself: run the site")
    return 0


def _settings(arguments: argparse.Namespace) -> UpdaterSettings:
    from skerry.deploy.plan import Place, plan  # noqa: PLC0415 - reads YAML, which not everybody has
    from skerry.deploy.site import load_site  # noqa: PLC0415 - as above
    from skerry.settings import BusSettings  # noqa: PLC0415 - as above

    site = load_site(arguments.site, dict(arguments.arguments))
    out = arguments.out.resolve()
    place = Place(state=str(out / "state"), frames="", output=str(out), bus=BusSettings())
    found = plan(site, place).of("updater")
    if not found:
        raise ConfigError(f"{arguments.site}: $.updater: expected one, got none (docs/updater.md)")
    settings: Any = found[0].settings
    return settings  # type: ignore[no-any-return]  # an updater's settings are UpdaterSettings
