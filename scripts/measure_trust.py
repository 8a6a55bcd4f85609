"""What verifying a repository takes on a device, with `cryptography` and without: `scripts/measure_trust.py`.

Every row is a process of its own. Import, refresh of a new device, and refresh with nothing new are in
milliseconds of CPU time (the least of several), memory is the process's peak, disk what the device keeps.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

ROUNDS = 7
CHILD = """
import json, resource, shutil, sys, time
from pathlib import Path
if sys.argv[4] == "without":
    sys.modules["cryptography"] = None
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
at = time.process_time()
from skerry.trust.device import Trust
from skerry.trust.sources import Folder
imported = time.process_time() - at
folder, state, root = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]).read_bytes()
now = float(sys.argv[5])
new, again = [], []
for _ in range(int(sys.argv[6])):
    shutil.rmtree(state, ignore_errors=True)
    trust = Trust(state, root)
    at = time.process_time()
    trust.refresh(Folder(folder), now, True)
    new.append(time.process_time() - at)
    at = time.process_time()
    trust.refresh(Folder(folder), now, True)
    again.append(time.process_time() - at)
print(json.dumps({
    "import_ms": imported * 1e3, "new_ms": min(new) * 1e3, "again_ms": min(again) * 1e3,
    "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "bare_mb": before / 1024,
    "disk_kb": sum(p.stat().st_size for p in state.iterdir()) / 1024,
}))
"""


def main() -> None:
    from publisher import Publisher, package  # noqa: PLC0415 - what the tests publish with
    from skerry.models.signing import metadata as making  # noqa: PLC0415 - as above

    names = "packages roots cryptography  import     new   again    MB     kB"
    print(names)
    with tempfile.TemporaryDirectory() as room:
        for packages, roots in ((1, 1), (1, 6), (1000, 1)):
            publisher = Publisher(Path(room) / f"{packages}-{roots}", now=time.time())
            listed = [making.target(package(f"1.{n}.0")) for n in range(packages)]
            publisher.repository._settle(  # noqa: SLF001 - one signature for all of them
                {each.path: each for each in listed}, publisher.signers, publisher.now
            )
            for _ in range(roots - 1):
                publisher.exchange("timestamp")
            anchor = Path(room) / "root.json"
            anchor.write_bytes(publisher.anchor)
            for which in ("with", "without"):
                row = measured(publisher.folder, Path(room) / "state", anchor, which, publisher.now)
                print(
                    f"{packages:8} {roots:5} {which:>12} {row['import_ms']:7.0f} {row['new_ms']:7.1f} "
                    f"{row['again_ms']:7.1f} {row['rss_mb']:5.0f} {row['disk_kb']:6.0f}"
                )


def measured(folder: Path, state: Path, anchor: Path, which: str, now: float) -> dict[str, float]:
    command = [
        sys.executable,
        "-c",
        CHILD,
        str(folder),
        str(state),
        str(anchor),
        which,
        str(now),
        str(ROUNDS),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    row: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return row


if __name__ == "__main__":
    main()
