"""What a device trusts, under the recorder: nothing that it was told of is forgotten after a cut."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from publisher import NOW, Publisher, package
from skerry import durable
from skerry.trust.device import Trust
from skerry.trust.times import Running

ROUNDS = 16
Known = tuple[int, float, int]


class Trusting:
    """A fact is {"anchor": root metadata, "known": [root, floor, epoch]}, from before the first write on."""

    options = "noauto_da_alloc"

    def __init__(self) -> None:
        self.fact: dict[str, Any] | None = None

    def note(self, fact: Any) -> None:
        self.fact = fact

    def work(self, folder: Path, promise: Callable[[object], None], draw: random.Random) -> None:
        with tempfile.TemporaryDirectory() as room:
            publisher = Publisher(Path(room)).add(package("1.0.0"))
            anchor = publisher.anchor

            def told() -> None:
                promise({"anchor": anchor.decode(), "known": known(folder, anchor)})

            told()
            for n in range(1, ROUNDS):
                if draw.random() < 0.2:
                    publisher.exchange("targets")
                publisher.add(package(f"1.{n}.0", epoch=n)).renew(1)
                trust = Trust(folder / "trust", anchor)
                trust.refresh(publisher.source, NOW, False, Running("boot", n * 60.0))
                told()
                trust.confirm(package(f"1.{n}.0", epoch=n))
                told()

    def check(self, folder: Path, draw: random.Random, ahead: Any) -> int:
        if self.fact is None:
            return 0
        promised, seen = self.fact["known"], known(folder, self.fact["anchor"].encode())
        assert seen is not None
        return sum(one < other for one, other in zip(seen, promised, strict=True))


def known(folder: Path, anchor: bytes) -> Known:
    trust = Trust(folder / "trust", anchor)
    return trust.root_version, trust.floor_s, trust.epoch("parts")


class Careless(Trusting):
    """Keeps its state in one copy that is not flushed."""

    def work(self, folder: Path, promise: Callable[[object], None], draw: random.Random) -> None:
        flushed = durable.replace
        durable.replace = lambda path, content, mode=0o600: _unflushed(path, content)
        try:
            super().work(folder, promise, draw)
        finally:
            durable.replace = flushed


def _unflushed(path: Path, content: bytes) -> None:
    draft = path.with_name(f"{path.name}.new")
    draft.write_bytes(content)
    draft.rename(path)
