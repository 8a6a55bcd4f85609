"""`skerry certs`: a certificate for everybody on a site's bus, made, renewed, checked or shown."""

from __future__ import annotations

import argparse
import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING

from skerry import durable
from skerry.broker import HOST
from skerry.deploy.acl import ACL_FILE, BROKER, CONFIGURATION_FILE, acl, broker_configuration, identities
from skerry.deploy.plan import Place, Plan, plan
from skerry.deploy.site import load_site
from skerry.errors import ConfigError, Unavailable
from skerry.settings import BusSettings

if TYPE_CHECKING:
    from skerry.deploy.keyring import Entry, Keyring

_MISSING = "certs: expected cryptography, got nothing (pip install 'skerry[cli]')"


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
) -> argparse.ArgumentParser:
    """Add the parser of `skerry certs`, and return it."""
    parser = commands.add_parser(
        "certs",
        help="certificates for everybody on a site's bus",
        description="Make a small authority for the site and a certificate for each module, the broker, and "
        "those who read along (observer, operator), with the broker's access rules and configuration; what "
        "is there and good stays. Where a folder has certificates and no authority/ca.key, they were "
        "brought: then they are checked, every error at once, exit code 78 if there is any.",
        epilog="example: skerry certs sites/demo.yaml --out certs --hosts broker,gateway.local",
    )
    parser.add_argument("site", type=Path, metavar="SITE", help="the site file; with --show the folder")
    parser.add_argument("--out", type=Path, default=None, metavar="DIR", help="folder of the certificates")
    parser.add_argument(
        "--days",
        type=_days,
        default=365.0,
        metavar="N",
        help="how long a new one lasts (default %(default)g)",
    )
    parser.add_argument(
        "--renew", type=_days, nargs="?", default=None, const=0.0, metavar="N",
        help="renew those that end within N days (default: within a third of their life); an authority that "
        "would end before what it signs is followed by a new one, and trusted until its end",
    )  # fmt: skip
    parser.add_argument(
        "--hosts", type=_hosts, default=(), metavar="NAME,...",
        help="what the broker is called by those who connect (default: as before; at first broker, "
        "localhost, 127.0.0.1, and the site's bus.host)",
    )  # fmt: skip
    parser.add_argument("--show", action="store_true", help="show what a folder has and when it ends")
    parser.set_defaults(func=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked; returns the exit code.

    Raises:
        ConfigError: the site file, or certificates that were brought, are wrong.
        Unavailable: the folder cannot be read or written, or `cryptography` is not installed.
    """
    try:
        from skerry.deploy.keyring import Keyring  # noqa: PLC0415 - the one command that needs cryptography
    except ImportError as error:
        raise Unavailable(_MISSING) from error
    now = dt.datetime.now(dt.UTC)
    if arguments.show:
        return _show(Keyring(arguments.out or arguments.site, now), arguments.out or arguments.site, now)
    if arguments.out is None:
        raise ConfigError("--out: expected a folder for the certificates, got nothing")
    site = load_site(arguments.site, dict(arguments.arguments), here=False)
    place = Place(state="", frames="", output="", bus=BusSettings())
    return _provide(Keyring(arguments.out, now), plan(site, place), site.bus.host, arguments, now)


def secure(folder: Path, the_plan: Plan, now: dt.datetime, *, port: int, user: str) -> str:
    """Certificates and rules for a broker of this machine, renewed where they are due; its configuration.

    Raises:
        ConfigError: certificates that were brought are wrong.
        Unavailable: the folder cannot be written, or `cryptography` is not installed.
    """
    try:
        from skerry.deploy.keyring import Keyring, Wish  # noqa: PLC0415 - needs cryptography
    except ImportError as error:
        raise Unavailable(_MISSING) from error
    keyring, names = Keyring(folder, now), identities(the_plan)
    if keyring.signs:
        keyring.provide(Wish(site=the_plan.site, names=names, renew=True))
    problems = keyring.problems(names, (HOST,))
    if problems:
        raise ConfigError(problems)
    _write_rules(folder / BROKER, the_plan)
    return broker_configuration(str((folder / BROKER).resolve()), port=port, address=HOST, user=user)


def _provide(
    keyring: Keyring, the_plan: Plan, host: str, arguments: argparse.Namespace, now: dt.datetime
) -> int:
    from skerry.deploy.keyring import HOSTS, Wish  # noqa: PLC0415 - as above

    names = identities(the_plan)
    if keyring.signs:
        renew = arguments.renew
        first = (*HOSTS, host) if host else HOSTS
        wish = Wish(
            site=the_plan.site, names=names,
            hosts=arguments.hosts or (() if BROKER in keyring.names() else first),
            days=arguments.days, renew=renew is not None, within=dt.timedelta(days=renew) if renew else None,
        )  # fmt: skip
        _print(keyring.provide(wish), now)
    problems = keyring.problems(names, arguments.hosts)
    if problems:
        raise ConfigError(problems)
    _write_rules(arguments.out / BROKER, the_plan)
    if not keyring.signs:
        print(f"{arguments.out}: the certificates of {len(names)} are good (brought: nothing was changed)")
    left_over = sorted(set(keyring.names()) - set(names))
    for name in left_over:
        print(f"{name}: nobody of this site; it may do nothing on the bus (remove its folder)")
    return 0


def _write_rules(folder: Path, the_plan: Plan) -> None:
    files = {ACL_FILE: acl(the_plan), CONFIGURATION_FILE: broker_configuration(str(folder.resolve()))}
    try:
        for name, text in files.items():
            path = folder / name
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                durable.replace(path, text.encode())
    except OSError as error:
        raise Unavailable(f"{error.filename or folder}: {error.strerror or error}") from error


def _show(keyring: Keyring, folder: Path, now: dt.datetime) -> int:
    entries = keyring.entries()
    if not entries:
        raise Unavailable(f"{folder}: expected certificates, got none (skerry certs SITE --out {folder})")
    _print(entries, now)
    problems = keyring.problems(keyring.names())
    if problems:
        raise ConfigError(problems)
    return 0


def _print(entries: list[Entry], now: dt.datetime) -> None:
    width = max(len(entry.name) for entry in entries)
    for entry in entries:
        left = (entry.facts.ends - now) / dt.timedelta(days=1)
        ends = f"{entry.facts.ends:%Y-%m-%d}  {left:6.0f} d"
        hosts = f"  {', '.join(entry.facts.hosts)}" if entry.facts.hosts else ""
        due = " (run with --renew)" if entry.done == "due" else ""
        print(f"{entry.name:{width}}  {ends}  {entry.done}{due}{hosts}")


def _days(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 3650:
        raise argparse.ArgumentTypeError(f"expected days above 0 and at most 3650, got {text!r}")
    return value


def _hosts(text: str) -> tuple[str, ...]:
    hosts = tuple(host.strip() for host in text.split(","))
    if not all(hosts):
        raise argparse.ArgumentTypeError(f"expected names with commas between them, got {text!r}")
    return hosts
