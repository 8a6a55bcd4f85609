"""Who publishes packages in the tests, and whoever stole some of the keys."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from copy import copy
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from securesystemslib.formats import encode_canonical
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile

from skerry.models.signing import metadata as making
from skerry.models.signing import repository
from skerry.models.signing.metadata import ROLES, Lasting
from skerry.trust.packages import TrustedPackage
from skerry.trust.refusals import Untrusted
from skerry.trust.sources import METADATA, Memory

DAY = 86400.0
NOW = datetime(2026, 11, 21, tzinfo=UTC).timestamp()
"""When the first root is signed."""
Keys = dict[str, list[CryptoSigner]]
Refused = Callable[..., Untrusted]
"""The fixture of that name in tests/unit/trust."""


def package(version: str = "1.0.0", *, name: str = "parts", epoch: int = 0, classes: Iterable[str] = ()):
    digest = hashlib.sha256(f"{name} {version} {epoch} {classes}".encode()).hexdigest()
    return TrustedPackage(
        digest=f"sha256:{digest}", length=1000, name=name, version=version, security_epoch=epoch,
        classes=tuple(classes),
    )  # fmt: skip


def some_keys(root: int = 3) -> Keys:
    return {
        role: [CryptoSigner.generate_ed25519() for _ in range(root if role == "root" else 1)]
        for role in ROLES
    }


class Publisher:
    """A repository, all of its keys, and a clock."""

    def __init__(
        self, folder: Path, *, now: float = NOW, lasting: Lasting | None = None, keys: Keys | None = None
    ) -> None:
        self.folder, self.now, self.keys = folder, now, keys or some_keys()
        self.repository = repository.create(
            folder,
            {role: [s.public_key for s in self.keys[role]] for role in ROLES},
            self.signers,
            now,
            thresholds={"root": min(2, len(self.keys["root"]))},
            lasting=lasting or Lasting(),
        )
        self.anchor = self.file("1.root.json")

    def copied(self, folder: Path, keys: Keys | None = None) -> "Publisher":
        """The same in another folder, whose disk is its own."""
        shutil.copytree(self.folder, folder)
        new = copy(self)
        new.folder, new.keys = folder, dict(keys or self.keys)
        new.repository = repository.Repository(folder)
        return new

    @property
    def signers(self) -> list[CryptoSigner]:
        return [s for role in ROLES for s in self.keys[role]]

    def file(self, name: str) -> bytes:
        return (self.folder / METADATA / name).read_bytes()

    @property
    def files(self) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in (self.folder / METADATA).iterdir()}

    @property
    def source(self) -> Memory:
        """All of it, as it is now."""
        return Memory(self.files)

    def add(self, *packages: TrustedPackage) -> "Publisher":
        for each in packages:
            self.repository.add(each, self.signers, self.now)
        return self

    def renew(self, days: float = 0.0) -> "Publisher":
        self.now += days * DAY
        self.repository.renew(self.signers, self.now)
        return self

    def exchange(self, *roles: str, new: Keys | None = None) -> "Publisher":
        """A root in which these roles have new keys, and what those sign."""
        before = self.repository.root
        new = new or {role: [CryptoSigner.generate_ed25519() for _ in self.keys[role]] for role in roles}
        draft = making.next_root(
            before,
            lasting=self.repository.lasting,
            now_s=self.now,
            add=[(role, s.public_key) for role in roles for s in new[role]],
            drop=[(role, s.public_key.keyid) for role in roles for s in self.keys[role]],
        )
        making.approve(draft, before, [*self.signers, *(s for each in new.values() for s in each)])
        self.keys |= new
        self.repository.publish(draft, self.signers, self.now)
        return self

    def changed(
        self, name: str, change: Callable[[dict[str, Any]], None], signers: Iterable[CryptoSigner]
    ) -> bytes:
        """A metadata file with something else in what is signed, signed by these alone."""
        value = json.loads(self.file(name))
        change(value["signed"])
        return resigned(value, signers)

    def stolen(self, role: str, change: Callable[[dict[str, Any]], None] | None = None) -> dict[str, bytes]:
        """What a thief of one role's keys publishes: that role's file changed, and no other."""
        name = "timestamp.json" if role == "timestamp" else f"{self.version(role)}.{role}.json"
        return self.files | {name: self.changed(name, change or (lambda _: None), self.keys[role])}

    def version(self, role: str) -> int:
        document = getattr(self.repository, role)
        return (document.signed if isinstance(document, Metadata) else document).version


def resigned(value: dict[str, Any], signers: Iterable[CryptoSigner]) -> bytes:
    """What is signed as it is, whether it makes sense or not."""
    payload = encode_canonical(value["signed"])
    assert payload is not None
    signatures = [signer.sign(payload.encode()).to_dict() for signer in signers]
    return json.dumps({"signatures": signatures, "signed": value["signed"]}, separators=(",", ":")).encode()


def linked(files: dict[str, bytes], publisher: Publisher, *, from_role: str) -> dict[str, bytes]:
    """Everything above a changed file signed anew, by who has the keys of all those roles."""
    files = dict(files)
    roles = ["targets", "snapshot", "timestamp"]
    for below, role in pairwise(roles):
        if roles.index(below) < roles.index(from_role):
            continue
        content = files[f"{publisher.version(below)}.{below}.json"]
        name = "timestamp.json" if role == "timestamp" else f"{publisher.version(role)}.{role}.json"
        meta = MetaFile.from_data(json.loads(content)["signed"]["version"], content, ["sha256"]).to_dict()
        value = json.loads(files[name])
        value["signed"]["meta"][f"{below}.json"] = meta
        value["signed"]["version"] += role == "timestamp"
        files[name] = resigned(value, publisher.keys[role])
    return files
