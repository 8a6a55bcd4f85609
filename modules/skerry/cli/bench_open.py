"""Open a store in a process that does nothing else, and say how long it took and what it needed.

Run as a program: `python -m skerry.cli.bench_open FOLDER LIMIT_BYTES`. One JSON object is printed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from skerry.cli.bench_appends import LANE, open_store
from skerry.cli.bench_site import peak_mb


def main(folder: Path, limit_bytes: int) -> None:
    """Open it, read its oldest and newest records, append one, and close it."""
    began = time.monotonic()
    store = open_store(folder, limit_bytes)
    opened = time.monotonic() - began
    chain = store.chain(LANE)
    waiting = chain.waiting
    for at in (chain.upto + 1, chain.last):
        assert chain.read(at, 1, 1) is not None, "the oldest and the newest record can be read"
    store.close()
    print(json.dumps({"open_s": round(opened, 3), "waiting": waiting, "rss_mb": peak_mb(os.getpid())}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
