"""The best single script one would write by hand, for `skerry bench pipeline` to be compared with.

One process: a thread decodes ahead by two frames, the main thread runs pre-processing, the same session and
the same decoder. No bus, no ledger, no tracker, no events: whatever happens to it, everything is lost.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from skerry.cli.bench_inference import open_model


def main(film: Path, package: Path, runtime: str) -> None:
    """Run over the file and print frames and frames per second between first and last result."""
    model = open_model(package, runtime)
    frames: queue.Queue[npt.NDArray[np.uint8] | None] = queue.Queue(maxsize=2)
    threading.Thread(target=_decode, args=(film, frames), daemon=True).start()
    count, objects, first, last = 0, 0, 0, 0
    while (pixels := frames.get()) is not None:
        objects += len(model(pixels))
        last = time.monotonic_ns()
        first = first or last
        count += 1
    print(
        json.dumps({"frames": count, "objects": objects, "fps": round((count - 1) * 1e9 / (last - first), 2)})
    )


def _decode(film: Path, frames: queue.Queue[Any]) -> None:
    with av.open(str(film)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for frame in container.decode(video=0):
            frames.put(frame.to_ndarray(format="bgr24"))
    frames.put(None)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
