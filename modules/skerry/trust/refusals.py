"""Why a delivery is refused, one class for each way of attacking it.

    Untrusted(PackageError)   exit 65
    +-- Forged         arbitrary installation: nobody entitled signed it
    +-- Malformed      it is no metadata, or metadata of something else
    +-- Endless        endless data
    +-- RolledBack     rollback of metadata, of a security epoch, or of a version without being asked for
    +-- Frozen         freeze: what is shown is older than it may be
    +-- RootExpired    the root has ended, so no key is known to be good
    +-- PostDated      fast-forward of time: signed in the future
    +-- MixedUp        mix-and-match of parts that were never published together
    +-- Altered        length or hash is not the one that was signed
    +-- WrongSoftware  signed, but not for this: another model, version or class of device
    +-- Unattested     signed, but not proved on this class of devices, which this device asks for

The names of the attacks are those of the TUF specification 1.0, section 1.5.2, and of Samuel et al.,
"Survivable key compromise in software update systems" (CCS 2010).
"""

from __future__ import annotations

from typing import ClassVar

from skerry.errors import PackageError


class Untrusted(PackageError):  # noqa: N818 - what the device says of it
    """A delivery is refused; what was trusted before stays trusted, and serves on.

    Args:
        where: the file, or what stands for it.
        what: what was wanted, and what was seen.

    Attributes:
        attack: in plain words, what this would be if somebody meant it.
    """

    attack: ClassVar[str] = "not to be trusted"

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where}: {what} ({self.attack})")


class Forged(Untrusted):
    attack = "arbitrary installation: not signed by enough of those whom this device trusts"


class Malformed(Untrusted):
    attack = "not the metadata of a repository"


class Endless(Untrusted):
    attack = "endless data: more than may ever be there"


class RolledBack(Untrusted):
    attack = "rollback: older than what this device has already accepted"


class Frozen(Untrusted):
    attack = (
        "freeze: somebody may be holding back what is newer; renew the timestamp, or copy a newer repository"
    )


class RootExpired(Untrusted):
    attack = "expired keys: nobody vouches for them any more; publish a new root"


class PostDated(Untrusted):
    attack = "fast-forward of time: signed in the future; set the clock here, or where it was signed"


class MixedUp(Untrusted):
    attack = "mix-and-match: parts that were never published together"


class Altered(Untrusted):
    attack = "altered: not what was signed; copy it again"


class WrongSoftware(Untrusted):
    attack = "wrong software: signed, but not for this"


class Unattested(Untrusted):
    attack = (
        "unattested: nobody signed that it keeps the budget of this class; skerry model bench measures it"
    )
