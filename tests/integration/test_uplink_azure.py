"""The Azure link on Microsoft's own client, in processes that have what its image has: see `azure/`."""

import os
import subprocess
import sys

import pytest

import needs

HERE = needs.ROOT / "tests" / "integration" / "azure"


@needs.mosquitto
@needs.azure
@pytest.mark.timeout(300)
@pytest.mark.skipif(str(needs.AZURE) in os.environ.get("PYTHONPATH", ""), reason="this is that run")
@pytest.mark.parametrize("name", sorted(path.name for path in HERE.glob("test_*.py")))
def test_on_microsofts_client(name) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(HERE / name), "-q", "-p", "no:cacheprovider", "-p", "no:xdist"],
        env={**os.environ, "PYTHONPATH": str(needs.AZURE)},
        cwd=needs.ROOT,
        capture_output=True,
        text=True,
        timeout=290,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
