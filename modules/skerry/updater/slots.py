"""Which package serves: `slots/MODEL/{current,previous,trial}`, all three exchanged at once.

`slots/MODEL` is a symbolic link to a folder `states/MODEL.N` that never changes once it has been named:
its three links are made, flushed and only then renamed into place. A reader of `slots/MODEL/current`, as
inference is, sees the old state or the new one, and no power cut leaves a mixture.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from skerry.messages import NAME
from skerry.models.oci import HEX
from skerry.updater.disk import Disk, guarded, remove

_NAMES = ("current", "previous", "trial")
_MODEL = re.compile(NAME)
_PACKAGES = "../../packages/"


@dataclass(frozen=True)
class Slots:
    """The packages of one model, by digest (64 hexadecimal digits).

    Attributes:
        current: serves.
        previous: served before, and serves again where current fails.
        trial: is being tried.
    """

    current: str | None = None
    previous: str | None = None
    trial: str | None = None

    @property
    def digests(self) -> frozenset[str]:
        """Those that there are."""
        return frozenset(filter(None, (self.current, self.previous, self.trial)))


class SlotTable:
    """The slots of a store; what is on disk is all there is to know.

    Args:
        folder: of the store; the folders in it are there.
        disk: what it is on.
    """

    def __init__(self, folder: Path, disk: Disk) -> None:
        self._disk = disk
        self.slots = folder / "slots"
        self.states = folder / "states"

    def models(self) -> tuple[str, ...]:
        """Models that have slots, sorted."""
        with guarded(self.slots):
            return tuple(sorted(p.name for p in self.slots.iterdir() if _MODEL.search(p.name)))

    def read(self, model: str) -> Slots:
        """The slots of a model; a link that leads elsewhere counts as none."""
        return Slots(**{name: self._target(model, name) for name in _NAMES})

    def write(self, model: str, slots: Slots) -> None:
        """Exchange all slots of a model at once; durable on return.

        Raises:
            StoreFull, StoreFault: they are as they were; or, where only the last flush failed, new.
        """
        with guarded(self.slots):
            old = self._state(model)
            state = self.states / f"{model}.{self._next()}"
            self._disk.make_folder(state)
            for name in _NAMES:
                if digest := getattr(slots, name):
                    self._disk.symlink(f"{_PACKAGES}{digest}", state / name)
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
            if _MODEL.search(path.name) and path.is_symlink() and (state := self._state(path.name)):
                used.add(state)
            else:
                yield path
        yield from [path for path in self.states.iterdir() if path not in used]

    def _target(self, model: str, name: str) -> str | None:
        state = self._state(model)
        try:
            target = str((state / name).readlink()) if state is not None else ""
        except OSError:
            return None
        digest = target.removeprefix(_PACKAGES)
        return digest if digest != target and HEX.fullmatch(digest) else None

    def _state(self, model: str) -> Path | None:
        """The folder that a model's link names; None where it names none of ours."""
        try:
            target = (self.slots / model).readlink()
        except OSError:
            return None
        name, _, number = target.name.rpartition(".")
        ours = name == model and number.isdecimal() and str(target.parent) == "../states"
        return self.states / target.name if ours else None

    def _next(self) -> int:
        """A number that no state has had since the store was last opened."""
        numbers = (p.name.rpartition(".")[2] for p in self.states.iterdir())
        return max((int(n) for n in numbers if n.isdecimal()), default=0) + 1
