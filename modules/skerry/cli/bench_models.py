"""A package of 100 MB fetched, made active and scrubbed, against sha256 and a flushed write of as much."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from skerry.models import layout
from skerry.models.oci import Blob
from skerry.updater.fetch import FolderSource, fetch
from skerry.updater.settings import StoreSettings
from skerry.updater.store import Store

_CHUNK = 1024 * 1024
_NAME = "bench"
_SETTINGS = StoreSettings(floor_bytes=0)


def run(*, runs: int = 3, megabytes: int = 100, folder: Path | None = None) -> dict[str, Any]:
    """Measure in turn, `runs` times; every store is a new one.

    Args:
        runs: rounds; medians are reported.
        megabytes: size of the model, in 10^6 bytes.
        folder: on the disk to measure; the current one otherwise.

    Returns:
        MB/s of each step, milliseconds to resolve a slot, and each step's ratio to its limit.
    """
    with tempfile.TemporaryDirectory(prefix="skerry-bench-", dir=folder or Path.cwd()) as room:
        there = Path(room)
        size = megabytes * 1_000_000
        packed = layout.pack(_package(there / "package", size), there / "layout")
        wanted = packed.listing.manifest
        rounds = [_round(there, there / f"round-{n}", wanted, size) for n in range(runs)]
    median = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    shown = {
        name if "_to_" in name or name.endswith("_ms") else f"{name}_mb_s": round(value, 3)
        for name, value in median.items()
    }
    return {"runs": runs, "megabytes": megabytes, **shown}


def _round(there: Path, room: Path, wanted: Blob, size: int) -> dict[str, float]:
    room.mkdir()
    source = FolderSource(there / "layout")
    model = there / "package" / "model.onnx"

    def speed(step: Callable[[], object]) -> float:
        os.sync()  # the writes of the step before are not this one's
        began = time.perf_counter()
        step()
        return size / 1e6 / (time.perf_counter() - began)

    found = {
        "sha256": speed(lambda: _hash(model)),
        "write_fsync": speed(lambda: _write(model, room / "raw")),
        "hash_write_fsync": speed(lambda: (_hash(model), _write(model, room / "both"))),
    }
    with Store.open(room / "store", _SETTINGS) as store:
        found["fetch"] = speed(lambda: fetch(store, source, wanted))
        found["activate"] = speed(lambda: store.activate(_NAME, wanted.digest))
        found["scrub"] = speed(store.scrub)
        began = time.perf_counter()
        store.resolve(_NAME)
        found["resolve_ms"] = (time.perf_counter() - began) * 1e3
    for path in (room / "raw", room / "both"):
        path.unlink()
    # One after the other is what a store does that hashes what it writes and flushes it.
    found["fetch_to_hash_write_fsync"] = found["fetch"] / found["hash_write_fsync"]
    found["activate_to_sha256"] = found["activate"] / found["sha256"]
    found["scrub_to_sha256"] = found["scrub"] / found["sha256"]
    return found


def _hash(path: Path) -> str:
    hashed = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            hashed.update(chunk)
    return hashed.hexdigest()


def _write(source: Path, target: Path) -> Path:
    with source.open("rb", buffering=0) as read, target.open("xb", buffering=0) as written:
        while chunk := read.read(_CHUNK):
            written.write(chunk)
        os.fsync(written.fileno())
    return target


def _package(folder: Path, size: int) -> Path:
    """A package that the store takes; no runtime would."""
    folder.mkdir()
    hashed = hashlib.sha256()
    with (folder / "model.onnx").open("wb") as file:
        for at in range(0, size, _CHUNK):
            piece = os.urandom(min(_CHUNK, size - at))
            hashed.update(piece)
            file.write(piece)
    (folder / "labels.txt").write_text("good\nbad\n", encoding="utf-8")
    manifest = {
        "schema": 1,
        "name": _NAME,
        "version": "1.0.0",
        "artifact": {"sha256": hashed.hexdigest()},
        "input": {"name": "in", "width": 8, "height": 6},
        "outputs": [{"name": "out", "shape": [1, 2]}],
        "decoder": {"kind": "classification"},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder
