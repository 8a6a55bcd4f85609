"""A module's settings when they can be changed from outside: as deployed, with the desired state on top.

What was applied is kept in the module's folder, so it counts after a restart with nobody there to repeat
it. Settings that count from the next start on are on trial then: a module that does not become ready with
them goes back to the ones before.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic

import msgspec
import structlog

from skerry import desired, durable
from skerry.desired import Adjusted, Check, S
from skerry.errors import ConfigError
from skerry.messages import Desired, Reported

_STARTS = 3
"""Starts that settings on trial get to become ready; a wrong configuration ends the trial at once."""
_MOST_BYTES = 1024 * 1024

log = structlog.get_logger()


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A patch that a module goes by."""

    version: str = ""
    digest: str = ""
    patch: dict[str, Any] = {}


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What is on disk."""

    good: Held = Held()
    trial: Held | None = None
    starts: int = 0
    """With the one on trial."""


class Adjuster(Generic[S]):
    """Not thread-safe; knows no bus.

    Args:
        deployed: the settings without any patch.
        file: where to keep what counts.
        check: what types cannot see in them.

    Attributes:
        now: the settings to go by.
        report: what to say of the last desired settings; None before there were any.
    """

    def __init__(self, deployed: S, file: Path, check: Check[S] = desired.nothing) -> None:
        self.deployed = deployed
        self._file = file
        self._check = check
        self._kept = _load(file)
        self._restart: tuple[str, ...] = ()
        self.report: Reported | None = None
        self.now: S = self._start()

    @property
    def on_trial(self) -> bool:
        """Whether this start is to show that the settings are good."""
        return self._kept.trial is not None and self._kept.starts > 0

    def ready(self) -> None:
        """The module has become ready: what was on trial is good."""
        if self.on_trial:
            assert self._kept.trial is not None
            self._applied(self._kept.trial, ())

    def failed(self, reason: str) -> None:
        """The module could not start with what is on trial."""
        if self.on_trial:
            self._drop_trial(f"the module did not start with it: {reason}")

    def look_at(self, message: Desired) -> Adjusted | None:
        """The settings that a message makes; None where there is nothing to apply to the module now.

        `report` says what to tell in that case; else call `applied` or `refused` once it was tried.
        """
        held = self._held
        if message.digest == held.digest and message.patch == held.patch:
            if message.version != held.version or self.report is None:
                self._applied(msgspec.structs.replace(held, version=message.version), self._restart)
            return None
        try:
            made = desired.adjusted(
                self.deployed, self.now, message.patch, self._check, f"modules.{message.module}"
            )
        except ConfigError as error:
            self.refused(message, error.problems)
            return None
        if made.live == self.now:
            self.applied(message, made)
            return None
        return made

    def applied(self, message: Desired, made: Adjusted) -> None:
        """The module goes by the live part of it."""
        self.now = made.live
        held = Held(version=message.version, digest=message.digest, patch=message.patch)
        self._applied(held, made.restart)

    def refused(self, message: Desired, errors: Sequence[str]) -> None:
        """It will not do; what counted before goes on."""
        log.error("desired.refused", version=message.version, errors=errors)
        self.report = Reported(
            module=self.deployed.module, version=message.version, digest=message.digest, state="refused",
            errors=tuple(errors[:20]),
        )  # fmt: skip

    @property
    def _held(self) -> Held:
        return self._kept.trial or self._kept.good

    def _start(self) -> S:
        """The settings to start with."""
        if self._kept.trial is not None:
            if self._kept.starts >= _STARTS:
                self._drop_trial(f"the module did not become ready with it in {_STARTS} starts")
            else:
                self._keep(msgspec.structs.replace(self._kept, starts=self._kept.starts + 1))
        held = self._held
        if not held.version:
            return self.deployed
        try:
            whole: S = desired.adjusted(
                self.deployed, self.deployed, held.patch, self._check, f"modules.{self.deployed.module}"
            ).whole
        except ConfigError as error:
            # It was deployed anew, and what was desired before does not fit any more.
            self._say_refused(held, error.problems)
            self._keep(_Kept())
            return self.deployed
        if not self.on_trial:
            self.report = self._said(held, ())
        return whole

    def _applied(self, held: Held, restart: tuple[str, ...]) -> None:
        self._restart = restart
        good = self._kept.good
        self._keep(_Kept(good=good, trial=held) if restart else _Kept(good=held))
        self.report = self._said(held, restart)
        log.info("desired.applied", version=held.version, restart=restart)

    def _drop_trial(self, reason: str) -> None:
        assert self._kept.trial is not None
        self._say_refused(self._kept.trial, [reason])
        self._keep(_Kept(good=self._kept.good))

    def _say_refused(self, held: Held, errors: Sequence[str]) -> None:
        message = Desired(module=self.deployed.module, version=held.version, digest=held.digest)
        self.refused(message, errors)

    def _said(self, held: Held, restart: tuple[str, ...]) -> Reported:
        return Reported(
            module=self.deployed.module, version=held.version, digest=held.digest, state="applied",
            restart=restart,
        )  # fmt: skip

    def _keep(self, kept: _Kept) -> None:
        self._kept = kept
        try:
            durable.replace(self._file, msgspec.json.encode(kept))
        except OSError as error:
            # It counts until the next start; the uplink repeats it then.
            log.error(  # noqa: TRY400 - the path and the reason say all
                "desired.not_kept", path=str(self._file), error=error.strerror
            )


def _load(file: Path) -> _Kept:
    try:
        with file.open("rb") as opened:
            content = opened.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        return _Kept()
    except OSError as error:
        log.warning("desired.unreadable", path=str(file), error=error.strerror)
        return _Kept()
    try:
        return msgspec.json.decode(content, type=_Kept)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        log.warning("desired.unreadable", path=str(file), error=str(error))
        return _Kept()
