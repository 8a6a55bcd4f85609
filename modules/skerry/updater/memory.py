"""What the updater remembers beside store and trust: what failed here, and when what serves was confirmed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import msgspec
import structlog
from msgspec.structs import replace

from skerry import durable
from skerry.trust.times import Running

_MOST_FAILED = 32
"""Packages of one slot that are remembered to have failed; the oldest is forgotten first."""

log = structlog.get_logger()


class Confirmed(msgspec.Struct, frozen=True, kw_only=True):
    """When the current package of a slot was confirmed.

    Attributes:
        digest: of it.
        utc_s: POSIX time.
        running: how long which boot had lasted.
        drift: what drifted already under the package before.
    """

    digest: str
    utc_s: float
    running: Running
    drift: tuple[str, ...] = ()

    def age_s(self, utc_s: float, running: Running) -> float:
        """How long ago; by the wall clock only where the device was started since."""
        if running.boot == self.running.boot:
            return running.seconds - self.running.seconds
        age = utc_s - self.utc_s
        return age if age >= 0 else math.inf  # a clock that went back says nothing


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What is on disk."""

    failed: dict[str, dict[str, str]] = {}
    """Slot to digest to why it failed here."""
    confirmed: dict[str, Confirmed] = {}
    """By slot."""
    drift: dict[str, tuple[str, ...]] = {}
    """By slot."""


class Memory:
    """Not thread-safe. What the disk does not take is remembered for as long as the process lives.

    Args:
        file: where to keep it; its folder must exist.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._kept = durable.load(file, _Kept) or _Kept()

    def failed(self, slot: str) -> Mapping[str, str]:
        """Digests of packages that failed in a slot, and why."""
        return self._kept.failed.get(slot, {})

    def confirmed(self, slot: str, digest: str | None) -> Confirmed | None:
        """When a package was confirmed in a slot; None where that is not known."""
        found = self._kept.confirmed.get(slot)
        return found if found is not None and found.digest == digest else None

    def drift(self, slot: str) -> tuple[str, ...]:
        """What drifted last in a slot, whatever served, until it was known that it does not any more."""
        return self._kept.drift.get(slot, ())

    def note_drift(self, slot: str, drift: tuple[str, ...], *, watched: bool) -> None:
        """What inference says of a slot.

        Args:
            slot: its name.
            drift: what drifts.
            watched: it would be known by now; after a start of inference, and of a model, that takes a while.
        """
        now = drift or (() if watched else self.drift(slot))
        if now != self.drift(slot):
            self._keep(replace(self._kept, drift={**self._kept.drift, slot: now}))

    def fail(self, slot: str, digest: str, reason: str) -> None:
        """A package failed in a slot."""
        others = {d: r for d, r in self.failed(slot).items() if d != digest}
        known = dict([*others.items(), (digest, reason)][-_MOST_FAILED:])
        self._keep(replace(self._kept, failed={**self._kept.failed, slot: known}))

    def confirm(self, slot: str, confirmed: Confirmed) -> None:
        """A package has proved itself in a slot, whatever it did before."""
        rest = {d: r for d, r in self.failed(slot).items() if d != confirmed.digest}
        self._keep(
            replace(
                self._kept,
                failed={**self._kept.failed, slot: rest},
                confirmed={**self._kept.confirmed, slot: confirmed},
            )
        )

    def _keep(self, kept: _Kept) -> None:
        self._kept = kept
        try:
            durable.replace(self._file, msgspec.json.encode(kept))
        except OSError as error:
            # Inference remembers what failed by itself, too.
            log.error("updates.not_kept", path=str(self._file), error=error.strerror)  # noqa: TRY400 - says all
