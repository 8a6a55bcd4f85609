"""`skerry model sign attest`, and `sign add --attestation`: what was measured, signed with its package."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from skerry import durable
from skerry.errors import ConfigError, PackageError, Unavailable
from skerry.models.layout import BLOBS

if TYPE_CHECKING:
    from skerry.models.benching.statement import Statement
    from skerry.trust.packages import Attested, TrustedPackage


class Attestation(NamedTuple):
    """A statement that may be signed with its package, and its bytes."""

    statement: Statement
    raw: bytes

    @property
    def summary(self) -> Attested:
        """What is signed of it."""
        from skerry.models.benching.statement import summary  # noqa: PLC0415 - who signs has it

        return summary(self.statement, self.raw)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what says which attestations are signed with a package."""
    parser.add_argument(
        "--attestation", type=Path, action="append", default=[], metavar="FILE", dest="attestations",
        help="of skerry model bench --out, about this package; may be repeated",
    )  # fmt: skip
    add_force(parser)


def add_force(parser: argparse.ArgumentParser) -> None:
    """Add what lets a bad attestation be signed as what it is."""
    parser.add_argument(
        "--force", action="store_true",
        help="sign an attestation that misses the budget, or falls short of the rules, as what it is",
    )  # fmt: skip


def read(
    paths: Sequence[Path], *, digest: str, classes: Sequence[str], force: bool
) -> tuple[Attestation, ...]:
    """Attestations about a package.

    Args:
        paths: of the statements.
        digest: of the package.
        classes: that it is for; none is any.
        force: take one that misses the budget or falls short; never one about something else.

    Raises:
        PackageError: one is none, about something else, or not good enough; with every reason.
        ConfigError: two are of one class.
        Unavailable: a file cannot be read.
    """
    from skerry.deploy.devices import DEVICES  # noqa: PLC0415 - only where there is something to compare
    from skerry.models.benching import statement  # noqa: PLC0415 - likewise

    found: list[Attestation] = []
    problems: list[str] = []
    for path in paths:
        raw = _bytes(path)
        made = statement.read(raw, str(path))
        predicate = made.predicate
        reasons = list(statement.objections(made, digest=digest, classes=tuple(classes), known=DEVICES))
        if not force:
            reasons += [f"{text} (--force signs it as it is)" for text in _weak(made)]
        problems += [f"{path}: {text}" for text in reasons]
        if any(each.statement.predicate.device_class == predicate.device_class for each in found):
            raise ConfigError(f"{path}: expected one attestation for {predicate.device_class}, got two")
        found.append(Attestation(made, raw))
    if problems:
        raise PackageError("\n".join(problems))
    return tuple(found)


def _weak(made: Statement) -> list[str]:
    """What of a statement that is one should not be signed without a thought."""
    predicate = made.predicate
    missed = [
        f"verdict: expected the budget of {predicate.device_class} to be met, got {each.figure} "
        f"{'unknown' if each.measured is None else f'{each.measured:g}'} where {each.budget:g} is allowed"
        for each in predicate.judged
        if each.verdict == "missed"
    ]
    return [*missed, *predicate.shortfalls]


def subject(path: Path) -> str:
    """The digest of the package that a statement is about.

    Raises:
        PackageError: it is none.
        Unavailable: it cannot be read.
    """
    from skerry.models.benching import statement  # noqa: PLC0415 - who signs has it

    return statement.read(_bytes(path), str(path)).digest


def keep(repository: Path, attestations: Sequence[Attestation]) -> None:
    """Put statements among a repository's blobs, where their digests name them.

    Raises:
        Unavailable: it cannot be written.
    """
    blobs = repository.joinpath(*BLOBS)
    for each in attestations:
        try:
            blobs.mkdir(parents=True, exist_ok=True)
            durable.replace(blobs / hashlib.sha256(each.raw).hexdigest(), each.raw, 0o644)
        except OSError as error:
            raise Unavailable(f"{error.filename or blobs}: {error.strerror}") from error


def told(package: TrustedPackage) -> list[str]:
    """What a package's attestations say, one a line."""
    return [
        f"  {each.device_class}: budget {each.verdict}, frame to event {_within(each)}, {each.memory_mib} MiB"
        for each in package.attestations
    ]


def _within(each: Attested) -> str:
    return "not bounded" if each.p95_us is None else f"within {each.p95_us / 1000:.1f} ms (p95)"


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error
