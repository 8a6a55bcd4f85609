"""Appends to a store for ever and says on standard output what was accepted; to be killed."""

import sys
import time
from pathlib import Path

from skerry.buffer.blocks import Stamp
from skerry.buffer.store import Record, Store
from skerry.errors import Unavailable


def main() -> None:
    folder, batch, limit = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    store = Store.open(
        folder, limit_bytes=limit, segment_bytes=256 * 1024, stamp=lambda: Stamp("b", time.monotonic_ns(), 0)
    )
    chain = store.chain("event")
    seq = chain.watermark("p", "e") or 0
    print(f"open {chain.last} {chain.upto}", flush=True)
    while True:
        records = [
            Record("p", "e", seq + n + 1, f'{{"seq":{seq + n + 1}}}'.ljust(300).encode())
            for n in range(batch)
        ]
        try:
            chain.append(records)
        except Unavailable as error:
            print(f"refused {type(error).__name__}", flush=True)
            if chain.waiting:
                chain.receipt(chain.last)
            time.sleep(0.01)
            continue
        seq += batch
        print(f"accepted {seq}", flush=True)
        if seq % 50 == 0 and "hold" not in sys.argv:
            chain.receipt(chain.last - 20)


main()
