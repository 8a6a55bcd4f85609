"""Which package serves: `slots/MODEL/{current,previous,trial}`, all three exchanged at once.

`slots/MODEL` is a symbolic link to a folder `states/MODEL.N` that never changes once it has been named:
its three links are made, flushed and only then renamed into place. A reader of `slots/MODEL/current`, as
inference is, sees the old state or the new one, and no power cut leaves a mixture.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from skerry.messages import NAME
from skerry.models.slots import LINKS, TO_PACKAGES, Slots, read_slots, state_of
from skerry.updater.disk import Disk, guarded, remove

__all__ = ["SlotTable", "Slots"]

_SLOT = re.compile(NAME)


class SlotTable:
    """The slots of a store; what is on disk is all there is to know.

    Args:
        folder: of the store; the folders in it are there.
        disk: what it is on.
    """

    def __init__(self, folder: Path, disk: Disk) -> None:
        self._folder = folder
        self._disk = disk
        self.slots = folder / "slots"
        self.states = folder / "states"

    def models(self) -> tuple[str, ...]:
        """Models that have slots, sorted."""
        with guarded(self.slots):
            return tuple(sorted(p.name for p in self.slots.iterdir() if _SLOT.search(p.name)))

    def read(self, model: str) -> Slots:
        """The slots of a model; a link that leads elsewhere counts as none."""
        return read_slots(self._folder, model)

    def write(self, model: str, slots: Slots) -> None:
        """Exchange all slots of a model at once; durable on return.

        Raises:
            StoreFull, StoreFault: they are as they were; or, where only the last flush failed, new.
        """
        with guarded(self.slots):
            old = self._state(model)
            state = self.states / f"{model}.{self._next()}"
            self._disk.make_folder(state)
            for name in LINKS:
                if digest := getattr(slots, name):
                    self._disk.symlink(f"{TO_PACKAGES}{digest}", state / name)
            self._disk.sync_folder(state)
            self._disk.sync_folder(self.states)
            draft = self.slots / f".{model}"
            remove(self._disk, draft)
            self._disk.symlink(f"../states/{state.name}", draft)
            self._disk.rename(draft, self.slots / model)
            self._disk.sync_folder(self.slots)
        if old is not None:
            with suppress(OSError):  # it is removed at the next start
                remove(self._disk, old)

    def pin(self) -> None:
        """Make what is seen now durable, before anything that it no longer needs is removed."""
        with guarded(self.slots):
            self._disk.sync_folder(self.states)
            self._disk.sync_folder(self.slots)

    def tidy(self) -> None:
        """Remove what a crash left behind."""
        self.pin()
        with guarded(self.slots):
            for path in self._strays():
                remove(self._disk, path)

    def _strays(self) -> Iterator[Path]:
        used = set()
        for path in list(self.slots.iterdir()):
            if _SLOT.search(path.name) and path.is_symlink() and (state := self._state(path.name)):
                used.add(state)
            else:
                yield path
        yield from [path for path in self.states.iterdir() if path not in used]

    def _state(self, model: str) -> Path | None:
        """The folder that a model's link names; None where it names none of ours."""
        return state_of(self._folder, model)

    def _next(self) -> int:
        """A number that no state has had since the store was last opened."""
        numbers = (p.name.rpartition(".")[2] for p in self.states.iterdir())
        return max((int(n) for n in numbers if n.isdecimal()), default=0) + 1
