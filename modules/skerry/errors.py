"""Errors, by who acts on them.

    SkerryError
    +-- ConfigError    fix your file                exit 78 (EX_CONFIG)
    +-- PackageError   distrust this model package  exit 65 (EX_DATAERR)
    +-- Unavailable    try later                    exit 69 (EX_UNAVAILABLE)
        +-- LinkDown   the far end cannot be reached: keep the records, try again
    +-- Rejected       the far end refused these records: never try again as they are

A message reads `where: what is wrong (what to do)`, the wanted value before the one seen.
Exit codes are those of BSD's sysexits.h, which every supervisor shows.
"""

from __future__ import annotations

from collections.abc import Sequence


class SkerryError(Exception):
    """Anything Skerry raises on purpose. `exit_code` is what a process that dies of it returns."""

    exit_code = 70  # EX_SOFTWARE


class ConfigError(SkerryError):
    """A file that a person wrote is wrong; every problem found is in `problems`."""

    exit_code = 78

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class PackageError(SkerryError):
    """A model package is not what it says it is."""

    exit_code = 65


class Unavailable(SkerryError):  # noqa: N818 - a state of the world, not a mistake
    """Something outside is not there now: a camera, a broker, a folder, a device."""

    exit_code = 69


class LinkDown(Unavailable):
    """The far end did not confirm the batch in time; sending it again is right.

    Args:
        message: what happened.
        retry_after_s: how long the far end asks to be left alone, in seconds; 0 when it does not.
    """

    def __init__(self, message: str = "", *, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Rejected(SkerryError):  # noqa: N818 - what the far end says
    """The far end will never take these records as they are."""


class FrameGone(SkerryError):  # noqa: N818 - expected in normal work
    """The writer has reused the slot: the reader was too slow for this frame."""
