"""What a repository says of a package, and which of several a device takes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import Meta

from skerry.messages import Name
from skerry.models.oci import MANIFEST_BYTES, Blob, Digest, Epoch, Semver
from skerry.trust.refusals import WrongSoftware


class Described(msgspec.Struct, frozen=True, kw_only=True):
    """`custom` of a target: what the signer says of a package."""

    name: Name
    """The model's, as in its manifest."""
    version: Semver
    security_epoch: Epoch = 0
    """Never decreases on a device; versions within one epoch may go back."""
    classes: tuple[Name, ...] = ()
    """Classes of devices that it is for; empty is any."""


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


def choose(
    packages: Iterable[TrustedPackage], name: str, device_class: str = "", version: str = ""
) -> TrustedPackage:
    """The package of a model that a device of a class takes: the newest of the highest epoch.

    Args:
        packages: those trusted now.
        name: the model's.
        device_class: of this device; empty takes only what is for any.
        version: exactly this one; empty is the newest.

    Raises:
        WrongSoftware: there is none.
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
    return newest_first(fit)[0]
