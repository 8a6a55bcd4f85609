"""Fixtures of the fault tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from clocks import WallClock, built


@pytest.fixture
def clock(tmp_path: Path) -> Iterator[WallClock]:
    """A wall clock that the test moves, for the processes that get its environment."""
    clock = WallClock(built(tmp_path), tmp_path / "told")
    clock.synchronise(True)
    yield clock
    clock.close()
