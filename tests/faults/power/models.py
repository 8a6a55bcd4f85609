"""The model store under the recorder: after any cut one whole package serves, of those it may be."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import structlog

from model_folders import NAME
from skerry.updater.disk import Disk
from store_life import Far, check, live

_SOME = 0.1
"""Share of the cuts after which the store is lived on in as well."""


class Models:
    """A fact is {"serving": digest}, empty for the bundled package."""

    options = "noauto_da_alloc"  # the store must not need it

    def __init__(self) -> None:
        self.serving = ""
        self.disk = Disk()

    @cached_property
    def far(self) -> Far:
        """Where packages come from: not on the disk that is cut."""
        structlog.configure(processors=[_nothing])
        return Far(Path(tempfile.mkdtemp(dir="/dev/shm", prefix="skerry-power-")))

    def note(self, fact: Any) -> None:
        self.serving = fact["serving"]

    def work(self, folder: Path, promise: Callable[[object], None], draw: random.Random) -> None:
        def say(digest: str) -> None:
            promise({"serving": digest})

        try:
            with self.far.open(folder / "store", self.disk) as store:
                say(store.resolve(NAME).digest)
            live(self.far, folder / "store", self.disk, say)
        finally:
            shutil.rmtree(self.far.room)

    def check(self, folder: Path, draw: random.Random, ahead: Any) -> int:
        try:
            allowed = {self.serving, *([ahead["serving"]] if ahead else [])}
            with self.far.open(folder / "store", Disk()) as store:
                assert not store.found, f"a crash is no damage: {store.found}"
                lost = store.resolve(NAME).digest not in allowed
                check(self.far, store, {*allowed, *self.far.digests, ""})
            if draw.random() < _SOME:
                live(self.far, folder / "store", Disk())
        finally:
            shutil.rmtree(self.far.room)
            del self.far
        return int(lost)


class Careless(Models):
    """Forgets one kind of flush.

    Args:
        forgets: `sync` or `sync_folder`.
    """

    def __init__(self, forgets: str) -> None:
        super().__init__()
        setattr(self.disk, forgets, lambda _what: None)


def _nothing(_logger: object, _name: str, _event: object) -> Any:
    raise structlog.DropEvent
