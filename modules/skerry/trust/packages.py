"""What a repository says of a package, and which of several a device takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from skerry.messages import Name
from skerry.models.oci import MANIFEST_BYTES, Blob, Digest, Epoch, Semver
from skerry.trust.refusals import Unattested, WrongSoftware

Verdict = Literal["met", "missed"]
MOST_ATTESTATIONS = 32
"""Of one package. Targets are bounded, so what each package adds to them is."""


class Attested(msgspec.Struct, frozen=True, kw_only=True):
    """That a package was measured on a class of devices, and what came of it.

    Whole numbers alone: the canonical form that is signed knows no others.
    """

    device_class: Name
    statement: Digest
    """Of the whole statement, `skerry model bench --out`; it lies among the repository's blobs."""
    verdict: Verdict
    """Whether the budget of the class was met."""
    p95_us: Annotated[int, Meta(ge=0)] | None = None
    """From a camera's frame to its event, upper confidence bound of the 95th percentile, in microseconds;
    None: what was measured has no bound."""
    memory_mib: Annotated[int, Meta(ge=0, le=10**7)]
    """Peak of what inference had resident, in MiB."""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What a device asks of a package beside that it is vouched for."""

    require_attestation: bool = False
    """That it was measured on this device's class and met the budget there."""


class Described(msgspec.Struct, frozen=True, kw_only=True):
    """`custom` of a target: what the signer says of a package."""

    name: Name
    """The model's, as in its manifest."""
    version: Semver
    security_epoch: Epoch = 0
    """Never decreases on a device; versions within one epoch may go back."""
    classes: tuple[Name, ...] = ()
    """Classes of devices that it is for; empty is any."""
    attestations: Annotated[tuple[Attested, ...], Meta(max_length=MOST_ATTESTATIONS)] = ()
    """At most one a class."""

    def __post_init__(self) -> None:
        named = [each.device_class for each in self.attestations]
        if len(named) != len(set(named)):
            raise ValueError(f"attestations: expected one a class, got {', '.join(sorted(named))}")

    def attested(self, device_class: str) -> Attested | None:
        """What was measured on a class; None where nothing was."""
        return next((each for each in self.attestations if each.device_class == device_class), None)


class TrustedPackage(Described, frozen=True, kw_only=True):
    """A package that was vouched for: who fetches it compares digest, length and what its manifest says."""

    digest: Digest
    """Of the OCI image manifest, which names everything else by digest."""
    length: Annotated[int, Meta(ge=1, le=MANIFEST_BYTES)]
    """Of the OCI image manifest, in bytes."""

    @property
    def title(self) -> str:
        """name@version."""
        return f"{self.name}@{self.version}"

    @property
    def manifest(self) -> Blob:
        """The manifest, as a store asks for it."""
        return Blob(self.digest.removeprefix("sha256:"), self.length)

    def require(self, *, name: str, version: str, security_epoch: int, length: int) -> None:
        """Compare what the package says of itself with what was signed of it.

        Args:
            name: in its config.
            version: in its config.
            security_epoch: in its config.
            length: of its manifest, in bytes.

        Raises:
            WrongSoftware: it is another, whatever its digest.
        """
        wanted = self.name, self.version, self.security_epoch, self.length
        seen = name, version, security_epoch, length
        for field, one, other in zip(
            ("name", "version", "security_epoch", "length"), wanted, seen, strict=True
        ):
            if one != other:
                raise WrongSoftware(
                    self.title, f"{field}: expected {one}, which was signed, got {str(other)[:80]}"
                )


def order(version: Semver) -> tuple[object, ...]:
    """A key that sorts semantic versions by precedence.

    Source: Semantic Versioning 2.0.0, section 11.
    """
    core, _, before = version.partition("+")[0].partition("-")
    numbers = tuple(int(n) for n in core.split("."))
    parts = tuple((0, int(p), "") if p.isdecimal() else (1, 0, p) for p in before.split("."))
    return (*numbers, 0, parts) if before else (*numbers, 1, ())


def newest_first(packages: Iterable[TrustedPackage]) -> list[TrustedPackage]:
    """By epoch, then version, then digest."""
    return sorted(packages, key=lambda p: (p.security_epoch, order(p.version), p.digest), reverse=True)


def permit(package: TrustedPackage, device_class: str, policy: Policy) -> None:
    """Let a package through that a device's policy has nothing against.

    Args:
        package: vouched for.
        device_class: of this device; empty is of none.
        policy: of this device.

    Raises:
        Unattested: the policy asks for an attestation, and there is none for this class, or it says `missed`.
    """
    if not policy.require_attestation:
        return
    if not device_class:
        raise Unattested(package.title, "expected an attestation for this device's class, got no class of it")
    found = package.attested(device_class)
    if found is None:
        there = ", ".join(each.device_class for each in package.attestations) or "none"
        raise Unattested(package.title, f"expected an attestation for class {device_class}, got {there}")
    if found.verdict != "met":
        raise Unattested(
            package.title, f"expected the budget of class {device_class} to be met, got {found.verdict}"
        )


def choose(
    packages: Iterable[TrustedPackage],
    name: str,
    device_class: str = "",
    version: str = "",
    policy: Policy = Policy(),  # noqa: B008 - frozen
) -> TrustedPackage:
    """The package of a model that a device of a class takes: the newest of the highest epoch.

    Where the policy lets it through: then an older one of the same epoch is taken, never one of an
    epoch that is over.

    Args:
        packages: those trusted now.
        name: the model's.
        device_class: of this device; empty takes only what is for any.
        version: exactly this one; empty is the newest.
        policy: of this device.

    Raises:
        WrongSoftware: there is none.
        Unattested: the policy lets none of the highest epoch through; of the newest of them.
    """
    named = [p for p in packages if p.name == name]
    if not named:
        raise WrongSoftware(f"model {name}", "expected a package of this model, got none")
    if version:
        named = [p for p in named if p.version == version]
        if not named:
            raise WrongSoftware(f"model {name}", f"expected version {version}, got none of it")
    fit = [p for p in named if not p.classes or device_class in p.classes]
    if not fit:
        offered = ", ".join(sorted({c for p in named for c in p.classes}))
        mine = device_class or "of no class"
        raise WrongSoftware(f"model {name}", f"expected a package for this device ({mine}), got {offered}")
    newest = newest_first(fit)
    refused: Unattested | None = None
    for package in newest:
        if package.security_epoch != newest[0].security_epoch:
            break
        try:
            permit(package, device_class, policy)
        except Unattested as error:
            refused = refused or error
        else:
            return package
    assert refused is not None
    raise refused
