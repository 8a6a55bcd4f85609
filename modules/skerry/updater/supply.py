"""Where packages come from: what the sources vouch for, which of it a slot takes, and bringing it here."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import structlog

from skerry.audit import AuditLog
from skerry.clock import synchronised
from skerry.errors import ConfigError, PackageError, Unavailable
from skerry.models.oci import Limits
from skerry.service import Host
from skerry.trust.device import NotKept, Trust
from skerry.trust.packages import Policy, TrustedPackage, choose
from skerry.trust.refusals import Untrusted
from skerry.trust.sources import Source as Metadata
from skerry.trust.times import Running
from skerry.updater.fetch import Budget, Source, Wait, fetch
from skerry.updater.settings import FetchSettings, UpdaterSettings
from skerry.updater.sources import opened
from skerry.updater.store import Store

_MOST_ROOT_BYTES = 256 * 1024

log = structlog.get_logger()


class Copy(NamedTuple):
    """A copy of a repository.

    Attributes:
        where: names it in messages, without secrets.
        metadata: what is signed.
        packages: what it is about.
    """

    where: str
    metadata: Metadata
    packages: Source


def read_root(path: Path) -> bytes:
    """The root metadata that a device was given.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(_MOST_ROOT_BYTES + 1)
    except OSError as error:
        wanted = "expected the root metadata that the device was given"
        raise ConfigError(f"root: {path}: {wanted}, got {error.strerror}") from error


def chosen(trust: Trust, settings: UpdaterSettings, slot: str, current: str | None) -> TrustedPackage:
    """The package that a slot should have.

    Args:
        trust: what is vouched for.
        settings: what is desired, and what the device is.
        slot: its name.
        current: digest of the package that serves in it by the store.

    Raises:
        Untrusted: there is none, or it must not take the place of the current one.
    """
    wanted = settings.slots[slot]
    packages = trust.packages
    policy = Policy(require_attestation=settings.require_attestation)
    package = choose(packages, wanted.model, settings.device_class, wanted.version, policy)
    serving = next((p for p in packages if p.manifest.digest == current), None)
    if serving is not None and serving.name != package.name:
        serving = None  # the slot is to have another model
    if package != serving:
        trust.admit(package, serving, back=bool(wanted.version))
    return package


def bring(
    store: Store, source: Source, package: TrustedPackage, fetching: FetchSettings, wait: Wait = time.sleep
) -> None:
    """Bring a package from a source into the store, and see that it is what was signed.

    Raises:
        WrongSoftware: it says something else of itself than what was signed of it.
        PackageError, Unavailable: as `fetch`.
    """
    limits = Limits(file_bytes=fetching.file_bytes, total_bytes=fetching.total_bytes)
    fetch(store, source, package.manifest, limits=limits, budget=Budget(fetching.bytes_per_s), wait=wait)
    config = store.config(package.manifest.digest)
    package.require(
        name=config.name, version=config.version, security_epoch=config.security_epoch, length=package.length
    )


class Supply:
    """The sources of a running updater.

    Args:
        settings: which they are.
        trust: judges what they vouch for.
        store: takes what they have.
        audit: is told what came, and what was refused.
        host: of the module: faults of sources, metrics.

    Attributes:
        refreshed_at: when a source last vouched for anything, monotonic seconds; None: not in this life.
    """

    def __init__(
        self, settings: UpdaterSettings, trust: Trust, store: Store, audit: AuditLog, host: Host
    ) -> None:
        self._copies = tuple(_copy(settings, n) for n in range(len(settings.sources)))
        self._trust = trust
        self._store = store
        self._audit = audit
        self._host = host
        self._said: dict[tuple[str, str], str] = {}
        """Why what a source gave was refused, last."""
        self._versions = trust.root_version, trust.targets_version
        self.refreshed_at: float | None = None

    def check(self, boot: str) -> None:
        """Ask every source for what is signed.

        Args:
            boot: identity of this boot.
        """
        reached = [copy for copy in self._copies if self._refreshed(copy, boot)]
        if reached:
            self.refreshed_at = time.monotonic()
            versions = self._trust.root_version, self._trust.targets_version
            if versions != self._versions:
                self._versions = versions
                self._audit.append("refreshed", root=versions[0], targets=versions[1])
        self._host.telemetry.gauge("skerry_updater_sources_reached", float(len(reached)))

    def bring(self, package: TrustedPackage, fetching: FetchSettings, wait: Wait) -> None:
        """Bring a package here, from the first source that has it.

        Raises:
            Unavailable: none has it now.
            WrongSoftware: it is not what was signed, wherever it comes from.
        """
        digest = package.manifest.digest
        why: list[str] = []
        for copy in self._copies:
            try:
                bring(self._store, copy.packages, package, fetching, wait)
            except Untrusted:
                raise
            except PackageError as error:
                # This copy is bad; another one may not be.
                why.append(str(error))
                self._refused(copy, error, digest)
                continue
            except Unavailable as error:
                why.append(str(error))
                continue
            self._said.pop((copy.where, digest), None)
            self._audit.append("fetched", model=package.name, version=package.version, digest=digest)
            log.info("model.fetched", model=package.title, digest=digest, source=copy.where)
            self._host.telemetry.count("skerry_updates_total", outcome="fetched")
            return
        text = "; ".join(why) or "there is no source (give the updater one)"
        raise Unavailable(f"{package.title}: no source has it now: {text}")

    def _refreshed(self, copy: Copy, boot: str) -> bool:
        """Whether a source vouches for anything now."""
        self._host.beat()
        try:
            running = Running(boot, time.monotonic())
            self._trust.refresh(copy.metadata, time.time(), synchronised(), running)
        except Untrusted as error:
            self._refused(copy, error, "metadata")
            return False
        except NotKept as error:
            self._host.fault("trust", str(error))
            return False
        except Unavailable as error:
            # A site that is offline for days is well.
            self._host.clear(_about(copy))
            log.info("source.unreachable", source=copy.where, reason=str(error))
            return False
        self._said.pop((copy.where, "metadata"), None)
        self._host.clear(_about(copy))
        self._host.clear("trust")
        return True

    def _refused(self, copy: Copy, error: PackageError, what: str) -> None:
        """A source gave what is no good; said once in the audit, until it is another reason.

        Args:
            copy: the source.
            error: why.
            what: of it: its metadata, or a package by its digest.
        """
        self._host.fault(_about(copy), str(error))
        if self._said.get((copy.where, what)) != str(error):
            self._said[copy.where, what] = str(error)
            self._audit.append("refused", reason=f"{_about(copy)}: {error}")


def _about(copy: Copy) -> str:
    return f"source {copy.where}"


def _copy(settings: UpdaterSettings, n: int) -> Copy:
    metadata, packages = opened(settings.sources[n], settings.fetch)
    return Copy(packages.where, metadata, packages)
