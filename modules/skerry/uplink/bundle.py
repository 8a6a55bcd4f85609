"""Diagnostics of all modules in one .tar.gz: a folder a module, and what the uplink knows of the site."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

_KEPT = 3
_SUFFIX = ".tar.gz"


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a module's answer to `diagnostics`."""

    log: tuple[str, ...] = ()
    """Each a JSON object."""
    ledger: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    status: dict[str, Any] = {}


def packed(modules: Mapping[str, Told], site: Mapping[str, Any], time_s: int) -> bytes:
    """The bundle; the same content gives the same bytes.

    Args:
        modules: by name.
        site: plain data for `site.json`.
        time_s: of the files in it, POSIX time in seconds.
    """
    out = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=out, mode="wb", compresslevel=6, mtime=time_s) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        _add(tar, "site.json", _json(site), time_s)
        for name, told in sorted(modules.items()):
            # A log entry is one line, whatever a module made of it.
            lines = "".join(" ".join(line.splitlines()) + "\n" for line in told.log)
            _add(tar, f"{name}/log.jsonl", lines.encode(errors="replace"), time_s)
            for part in ("ledger", "metrics", "settings", "status"):
                _add(tar, f"{name}/{part}.json", _json(getattr(told, part)), time_s)
    return out.getvalue()


def keep(folder: Path, name: str, content: bytes) -> Path:
    """Write a bundle into a folder, and remove all but the newest few; its path.

    Raises:
        OSError: it is not there, and no part of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}{_SUFFIX}"
    draft = folder / f".{name}.new"
    try:
        draft.touch(0o600)
        draft.write_bytes(content)
        draft.rename(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    # Whatever the clock says of the others: the new one stays.
    others = sorted((p for p in folder.glob(f"*{_SUFFIX}") if p != path), key=_age)
    for old in others[: len(others) - (_KEPT - 1)] if len(others) >= _KEPT else []:
        old.unlink(missing_ok=True)
    for left in folder.glob(".*.new"):
        left.unlink(missing_ok=True)
    return path


def _age(path: Path) -> tuple[float, str]:
    try:
        return path.stat().st_mtime, path.name
    except OSError:
        return 0.0, path.name


def _add(tar: tarfile.TarFile, name: str, content: bytes, time_s: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    entry.mtime = time_s
    entry.mode = 0o600
    tar.addfile(entry, io.BytesIO(content))


def _json(data: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(data), indent=1) + b"\n"
