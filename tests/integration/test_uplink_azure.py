"""The Azure link on Microsoft's own client, in processes that have what its image has: see `azure/`.

That client, and paho 1.6.1 below it, leave sockets to the garbage collector: those of failed handshakes, of
the workload API, and the pair that wakes a thread. Whether anything stays is tested there by counting.
"""

import os
import subprocess
import sys

import pytest

import needs

_WITHOUT = "cacheprovider", "xdist", "unraisableexception"
HERE = needs.ROOT / "tests" / "integration" / "azure"


@needs.mosquitto
@needs.azure
@pytest.mark.timeout(300)
@pytest.mark.skipif(str(needs.AZURE) in os.environ.get("PYTHONPATH", ""), reason="this is that run")
@pytest.mark.parametrize("name", sorted(path.name for path in HERE.glob("test_*.py")))
def test_on_microsofts_client(name) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(HERE / name), "-q", *map("-pno:{}".format, _WITHOUT)],
        env={**os.environ, "PYTHONPATH": str(needs.AZURE)},
        cwd=needs.ROOT,
        capture_output=True,
        text=True,
        timeout=290,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
