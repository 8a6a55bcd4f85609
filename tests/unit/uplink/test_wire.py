"""A connection that another thread has let go of is not made, nor used."""

import time

import pytest

from http_far_end import HttpFarEnd
from skerry.uplink.wire import Wire, WireError, target


def test_what_was_let_go_of_before_it_connected_never_does() -> None:
    with HttpFarEnd() as far:
        wire = Wire(target(f"http://127.0.0.1:{far.port}/"), None, None)
        wire.abandon()
        with pytest.raises(WireError, match="closed"):
            wire.connect(time.monotonic() + 5)
        assert wire.stale
        wire.close()
        assert far.connections == 0


def test_there_is_no_time_behind_the_deadline() -> None:
    with HttpFarEnd() as far:
        wire = Wire(target(f"http://127.0.0.1:{far.port}/"), None, None)
        with pytest.raises(TimeoutError):
            wire.connect(time.monotonic() - 1)
        wire.close()


def test_nothing_is_sent_before_it_is_connected() -> None:
    with pytest.raises(WireError, match="not connected"):
        Wire(target("http://127.0.0.1:9/"), None, None).post({}, b"", time.monotonic() + 5)
