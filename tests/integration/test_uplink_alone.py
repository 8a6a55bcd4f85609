"""The uplink as a process on Mosquitto, killed again and again, without a buffer: a test plays its part.

What is receipted is at the far end: in a file exactly once, at a broker at least once, in order.
"""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import needs
from fed_uplink import check, killed_under_load
from http_far_end import HttpFarEnd
from payloads import Payloads
from skerry.batches import decode
from skerry.broker import BrokerProcess
from skerry.messages import LANES, Event
from skerry.testing import eventually

pytestmark = [needs.mosquitto, pytest.mark.timeout(180)]


@pytest.fixture
def bus_port(tmp_path: Path) -> Iterator[int]:
    with BrokerProcess(tmp_path / "broker", kind="mosquitto") as broker:
        yield broker.port


def test_killed_again_and_again_a_file_has_each_record_once_and_in_order(
    tmp_path: Path, bus_port: int
) -> None:
    path = tmp_path / "far.jsonl"
    killed_under_load(tmp_path, bus_port, {"kind": "file", "path": str(path)}, kills=6)
    check([msgspec.json.decode(line, type=Event) for line in path.read_bytes().splitlines()], repeats=False)


@pytest.mark.parametrize("more", [{}, {"format": "batch", "compression": "zstd"}], ids=["events", "zstd"])
def test_killed_again_and_again_a_broker_has_each_record_in_order(
    tmp_path: Path, bus_port: int, more: dict[str, str]
) -> None:
    with BrokerProcess(tmp_path / "far", kind="mosquitto") as far:
        payloads = Payloads(far.port, "skerry/t/far/#")
        payloads.start()
        link = {"kind": "mqtt", "host": "127.0.0.1", "port": far.port, **more}
        buffer = killed_under_load(tmp_path, bus_port, link, kills=4)

        def arrived() -> list[Event]:
            return [msgspec.json.decode(e, type=Event) for p in list(payloads.got) for e in decode(p)]

        eventually(lambda: {(e.lane, e.seq) for e in arrived()} >= {(lane, 3000) for lane in LANES})
        check(arrived(), repeats=True)
        assert set(payloads.topics) == {f"skerry/t/far/{lane}" for lane in LANES}
        payloads.stop()
    assert buffer.metrics[-1].rss_mb <= 40


def test_killed_again_and_again_a_web_server_has_each_record_in_order(tmp_path: Path, bus_port: int) -> None:
    with HttpFarEnd() as far:
        link = {
            "kind": "http", "url": f"http://127.0.0.1:{far.port}/in", "format": "batch", "compression": "zstd"
        }  # fmt: skip
        buffer = killed_under_load(tmp_path, bus_port, link, kills=4)
        check(far.arrived, repeats=True)
    assert buffer.metrics[-1].rss_mb <= 40
