"""`python -m skerry.updater.install REPOSITORY`: packages from a stick, on a device without a network.

For a device whose updater does not run, with the updater's own settings (`SKERRY_SETTINGS`): what a stick
brings is trusted, fetched and put on trial as the updater would. It serves after it has proved itself, which
begins when updater and inference run.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from skerry.audit import AuditLog
from skerry.clock import boot_id, synchronised
from skerry.errors import ConfigError, SkerryError, Unavailable
from skerry.service import load
from skerry.trust.device import Trust
from skerry.trust.packages import TrustedPackage
from skerry.trust.sources import METADATA, Folder
from skerry.trust.times import Running
from skerry.updater.fetch import FolderSource
from skerry.updater.settings import UpdaterSettings
from skerry.updater.store import Store
from skerry.updater.supply import bring, chosen, read_root

Told = Callable[[str, str], object]
"""Told of each slot and what became of it."""


class Installed(NamedTuple):
    """What a slot has on trial now, or already has.

    Attributes:
        slot: its name.
        package: the one that was chosen.
        state: `on trial`, or `serves already`.
    """

    slot: str
    package: TrustedPackage
    state: str


def install(
    repository: Path,
    settings: UpdaterSettings,
    slots: Sequence[str] = (),
    tell: Told = lambda _slot, _text: None,
) -> tuple[Installed, ...]:
    """Bring what a repository has for the slots of a device into its store, on trial.

    Args:
        repository: a copy of the repository, e.g. on a stick.
        settings: of the device's updater.
        slots: only these; empty: all.
        tell: is told what goes on.

    Raises:
        Untrusted: the repository, or a package in it, is not to be trusted; nothing was changed.
        PackageError: a package is no good.
        ConfigError: there is no such slot, or no root.
        Unavailable: the updater runs, or the disk does not take it.
    """
    unknown = [name for name in slots if name not in settings.slots]
    if unknown:
        raise ConfigError(f"expected one of the slots {', '.join(settings.slots)}, got {unknown[0]}")
    if not (repository / METADATA).is_dir():
        raise Unavailable(f"{repository}: expected a repository, with {METADATA}/ and blobs/, got none")
    state = Path(settings.state)
    try:
        store = Store.open(Path(settings.store), settings.room)
    except Unavailable as error:
        raise Unavailable(
            f"{error}; or give the running updater the stick as a source of kind folder"
        ) from error
    with store:
        state.mkdir(parents=True, exist_ok=True)
        trust = Trust(state / "trust", read_root(Path(settings.root)))
        audit = AuditLog(state / "audit", settings.audit_bytes)
        try:
            now = Running(boot_id(), time.monotonic())
            trust.refresh(Folder(repository), time.time(), synchronised(), now)
            audit.append("refreshed", root=trust.root_version, targets=trust.targets_version)
            wanted = slots or tuple(settings.slots)
            return tuple(_installed(name, repository, settings, store, trust, audit, tell) for name in wanted)
        finally:
            audit.close()


def _installed(  # noqa: PLR0917 - everything a device has
    name: str, repository: Path, settings: UpdaterSettings, store: Store, trust: Trust, audit: AuditLog,
    tell: Told,
) -> Installed:  # fmt: skip
    held = store.slots(name)
    package = chosen(trust, settings, name, held.current)
    digest = package.manifest.digest
    if digest == held.current:
        tell(name, f"{package.title} serves already")
        return Installed(name, package, "serves already")
    tell(name, f"{package.title}: fetching")
    bring(store, FolderSource(repository), package, settings.fetch)
    about = {"model": package.name, "version": package.version, "digest": digest}
    audit.append("fetched", **about)
    store.offer(name, digest, package.name)
    audit.append("offered", slot=name, **about)
    tell(name, f"{package.title}: on trial")
    return Installed(name, package, "on trial")


def main(arguments: Sequence[str]) -> int:
    """The command; returns its exit code."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(f"usage: python -m skerry.updater.install REPOSITORY\n\n{__doc__}", file=sys.stderr)
        return 0 if "--help" in arguments or "-h" in arguments else ConfigError.exit_code
    try:
        install(Path(arguments[0]), load(UpdaterSettings), tell=lambda slot, text: print(f"{slot}: {text}"))
    except SkerryError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
