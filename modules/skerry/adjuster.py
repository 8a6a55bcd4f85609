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
_MOST_ERRORS = 20
_LONGEST_ERROR = 1000

log = structlog.get_logger()


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A patch that a module goes by."""

    version: str = ""
    digest: str = ""
    patch: dict[str, Any] = {}


class _Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """A patch that was tried with a start, and would not do."""

    version: str
    digest: str
    deployed: str
    """Digest of the settings that it was on: on others it may do."""
    errors: tuple[str, ...]


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What is on disk."""

    good: Held = Held()
    trial: Held | None = None
    starts: int = 0
    """With the one on trial."""
    refused: _Refusal | None = None
    """So that it is not tried again, however often it is said; and so that the refusal is told."""


class Adjuster(Generic[S]):
    """Not thread-safe; knows no bus.

    Args:
        deployed: the settings without any patch.
        file: where to keep what counts.
        check: what types cannot see in them.

    Attributes:
        now: the settings to go by.
        report: what to say of the last desired settings; None before there were any, and while a start is
            to show what they are worth.
    """

    def __init__(self, deployed: S, file: Path, check: Check[S] = desired.nothing) -> None:
        self.deployed = deployed
        self._as_deployed = desired.digest(msgspec.to_builtins(deployed))
        self._file = file
        self._check = check
        self._kept = durable.load(file, _Kept) or _Kept()
        self._restart: tuple[str, ...] = ()
        self._tried: Held | None = None
        """What this start is to show to be good."""
        self.report: Reported | None = None
        self.now: S = self._start()

    @property
    def on_trial(self) -> bool:
        """Whether this start is to show that the settings are good."""
        return self._tried is not None

    def ready(self) -> None:
        """The module has become ready: what was on trial is good."""
        tried, self._tried = self._tried, None
        if tried is None:
            return
        if self._kept.trial == tried:
            self._applied(tried, ())
        else:  # something newer waits for the next start; this is what to go back to
            self._keep(msgspec.structs.replace(self._kept, good=tried))

    def failed(self, reason: str) -> None:
        """The module could not start with what is on trial."""
        tried, self._tried = self._tried, None
        if tried is not None:
            self._end_trial(tried, [f"the module did not start with it: {reason}"])

    def look_at(self, message: Desired) -> Adjusted | None:
        """The settings that a message makes; None where there is nothing to apply to the module now.

        `report` says what to tell in that case; else call `applied` or `refused` once it was tried.
        """
        held = self._kept.trial or self._kept.good
        if held.version and (message.digest, message.patch) == (held.digest, held.patch):
            self._applied(msgspec.structs.replace(held, version=message.version), self._restart)
            return None
        refusal = self._kept.refused
        if refusal is not None and refusal == msgspec.structs.replace(
            refusal, version=message.version, digest=message.digest, deployed=self._as_deployed
        ):
            self.refused(message, refusal.errors)
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
        self._say_refused(message.version, message.digest, errors)

    def _start(self) -> S:
        """The settings to start with."""
        kept = self._kept
        if kept.trial is not None and kept.starts >= _STARTS:
            self._end_trial(kept.trial, [f"the module did not become ready with it in {_STARTS} starts"])
        elif kept.trial is not None and self._keep(msgspec.structs.replace(kept, starts=kept.starts + 1)):
            whole = self._whole(kept.trial)
            if whole is not None:
                self._tried = kept.trial
                return whole
        whole = self._whole(self._kept.good)
        if whole is None:
            self._keep(msgspec.structs.replace(self._kept, good=Held()))
            return self.deployed
        return self._untried(whole)

    def _untried(self, good: S) -> S:
        """Say what became of the newest settings; what to go by where they are not on trial."""
        kept, refusal = self._kept, self._kept.refused
        if refusal is not None and refusal.deployed == self._as_deployed:
            self._say_refused(refusal.version, refusal.digest, refusal.errors)
        elif kept.trial is not None:
            # The disk did not take the count of this start, and one that is not counted may go on for ever.
            try:
                made = self._adjusted(kept.trial, good)
            except ConfigError as error:
                self._end_trial(kept.trial, error.problems)
                return good
            self._restart = made.restart
            self.report = self._said(kept.trial, self._restart)
            return made.live  # type: ignore[no-any-return]  # of the type of `good`
        elif self.report is None and kept.good.version:
            self.report = self._said(kept.good, ())
        return good

    def _whole(self, held: Held) -> S | None:
        """The settings with a patch on them; None, and it is refused, where they will not do any more."""
        if not held.patch:
            return self.deployed
        try:
            whole: S = self._adjusted(held, self.deployed).whole
        except ConfigError as error:
            # It was deployed anew, and what was desired before does not fit any more.
            self._end_trial(held, error.problems)
            return None
        return whole

    def _adjusted(self, held: Held, now: S) -> Adjusted:
        return desired.adjusted(
            self.deployed, now, held.patch, self._check, f"modules.{self.deployed.module}"
        )

    def _applied(self, held: Held, restart: tuple[str, ...]) -> None:
        self._restart = restart
        good = self._kept.good
        if restart:
            kept = _Kept(good=good, trial=held)
        elif self._tried is not None:
            # What is on trial is in it, and nothing is shown yet.
            self._tried, kept = held, msgspec.structs.replace(self._kept, trial=held, refused=None)
        else:
            kept = _Kept(good=held)
        if kept != self._kept:
            self._keep(kept)
            log.info("desired.applied", version=held.version, restart=restart)
        if self._tried is None or self._tried != self._kept.trial:
            self.report = self._said(held, restart)

    def _end_trial(self, held: Held, errors: Sequence[str]) -> None:
        """Refuse what was on trial, unless something newer is by now; remember it."""
        self._say_refused(held.version, held.digest, errors)
        assert self.report is not None
        refusal = _Refusal(
            version=held.version, digest=held.digest, deployed=self._as_deployed, errors=self.report.errors
        )
        kept = msgspec.structs.replace(self._kept, refused=refusal)
        if kept.trial == held:
            kept = msgspec.structs.replace(kept, trial=None, starts=0)
        self._keep(kept)

    def _say_refused(self, version: str, digest: str, errors: Sequence[str]) -> None:
        log.error("desired.refused", version=version, errors=errors)
        self.report = Reported(
            module=self.deployed.module, version=version, digest=digest, state="refused",
            errors=tuple(error[:_LONGEST_ERROR] for error in errors[:_MOST_ERRORS]),
        )  # fmt: skip

    def _said(self, held: Held, restart: tuple[str, ...]) -> Reported:
        return Reported(
            module=self.deployed.module, version=held.version, digest=held.digest, state="applied",
            restart=restart,
        )  # fmt: skip

    def _keep(self, kept: _Kept) -> bool:
        """Put it on disk; whether it is there. It counts in any case, until the next start."""
        self._kept = kept
        try:
            durable.replace(self._file, msgspec.json.encode(kept))
        except OSError as error:
            log.error(  # noqa: TRY400 - the path and the reason say all
                "desired.not_kept", path=str(self._file), error=error.strerror
            )
            return False
        return True
