"""A process that keeps a small store busy: it appends, is receipted, evicts, and uses files again. For ever.

python busy_store.py FOLDER
"""

import random
import sys
import time
from pathlib import Path

from skerry.buffer.blocks import Stamp
from skerry.buffer.records import Record
from skerry.buffer.store import Store
from unit.buffer.stores import payload


def main(folder: Path) -> None:
    store = Store.open(
        folder, limit_bytes=16 * 16384, segment_bytes=16384, stamp=lambda: Stamp("boot", 1, 2, True)
    )  # fmt: skip
    chain, draw = store.chain("event"), random.Random(1)
    print("open", flush=True)
    seq = 0
    while True:
        count = draw.randint(1, 20)
        chain.append([Record("p", "e", seq + n, payload(seq + n, size=200)) for n in range(1, count + 1)])
        seq += count
        if draw.random() < 0.05:
            chain.receipt(draw.randint(chain.upto, chain.last))
        if draw.random() < 0.05:
            chain.read(chain.upto + 1, 10, 10_000)  # tells of a hole
        store.prepare()
        time.sleep(draw.random() * 0.004)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
