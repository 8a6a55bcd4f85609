"""What a test of the store leaves open is closed after it: other libraries fail above 1,024 files."""

from collections.abc import Iterator

import pytest

from unit.buffer.stores import kill, opened


@pytest.fixture(autouse=True)
def closed_stores() -> Iterator[None]:
    """Kill every store that the test did not."""
    yield
    while opened:
        kill(opened.pop())
