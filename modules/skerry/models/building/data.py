"""The pictures of a build: which ones, what they are by content, and that none calibrates and judges."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from skerry.errors import ConfigError
from skerry.models import datasets
from skerry.models.building.record import DataSet
from skerry.models.building.spec import GoldenWish, Pictures
from skerry.models.datasets import PICTURES, Dataset
from skerry.models.package import digest

Role = Literal["calibration", "evaluation", "golden"]

FEWEST = 10
"""Pictures to calibrate on, and to judge by."""


@dataclass(frozen=True)
class Used:
    """Pictures that a build uses.

    Attributes:
        pictures: in order.
        record: what they are by content.
        labelled: the same with their labels; None where those are not looked at.
    """

    pictures: tuple[Path, ...]
    record: DataSet
    labelled: Dataset | None = None


def evaluation(folder: Path, wish: Pictures) -> Used:
    """Labelled pictures.

    Raises:
        ConfigError: there are too few, or their labels cannot be read.
    """
    whole = datasets.read(folder)
    some = tuple(sorted(whole.pictures, key=lambda picture: picture.path))[_part(wish)]
    _enough(len(some), "data.evaluation")
    paths = tuple(picture.path for picture in some)
    notes = [p for p in folder.glob("*.json") if p.is_file()] + sorted(folder.glob("Annotations/*.xml"))
    record = _record("evaluation", whole.form, folder, paths, notes)
    return Used(paths, record, Dataset(whole.form, some))


def calibration(folder: Path, wish: Pictures) -> Used:
    """Pictures, wherever they are below the folder.

    Raises:
        ConfigError: there are too few.
    """
    paths = tuple(_pictures(folder))[_part(wish)]
    _enough(len(paths), "data.calibration")
    return Used(paths, _record("calibration", "pictures", folder, paths))


def golden(folder: Path | None, wish: GoldenWish, judges: Used) -> Used:
    """Pictures of a folder, or some of those that are judged by, evenly spread.

    Raises:
        ConfigError: there are none.
    """
    paths = judges.pictures if folder is None else tuple(_pictures(folder))
    if not paths:
        raise ConfigError(f"data.golden.folder: expected pictures in {folder}, found none")
    step = max(1, len(paths) // wish.take)
    paths = paths[::step][: wish.take] if folder is None else paths[: wish.take]
    base = folder if folder is not None else Path(paths[0]).parent
    return Used(paths, _record("golden", "pictures", base, paths))


def check_apart(one: Used, other: Used) -> None:
    """That no picture is in both, by content.

    Raises:
        ConfigError: one is.
    """
    seen = {digest(path): path for path in one.pictures}
    both = [(seen[sha256], path) for path in other.pictures if (sha256 := digest(path)) in seen]
    if both:
        first, second = both[0]
        raise ConfigError(
            f"data.{one.record.role} and data.{other.record.role}: expected different pictures, "
            f"got {len(both)} in both, {first.name} as {second.name} for one (use skip and take)"
        )


def _part(wish: Pictures) -> slice:
    return slice(wish.skip, None if wish.take is None else wish.skip + wish.take)


def _enough(found: int, where: str) -> None:
    if found < FEWEST:
        raise ConfigError(f"{where}: expected at least {FEWEST} pictures, got {found}")


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES and path.is_file())


def _record(
    role: Role,
    form: str,
    folder: Path,
    paths: Sequence[Path],
    notes: Iterable[Path] = (),
) -> DataSet:
    files = sorted({*paths, *notes})
    lines = sorted(f"{digest(path)}  {_named(path, folder)}\n" for path in files)
    return DataSet(
        role=role, form=form, sha256=hashlib.sha256("".join(lines).encode()).hexdigest(),  # type: ignore[arg-type] # a form that was read
        files=len(files), pictures=len(paths),
    )  # fmt: skip


def _named(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name
