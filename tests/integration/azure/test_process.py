"""The uplink with the Azure link as a process: killed under load, and within its memory."""

import time

import pytest

from bus_process import ModuleProcess, given
from fed_uplink import check, killed_under_load
from skerry.broker import BrokerProcess
from skerry.testing import eventually

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def bus_port(tmp_path):
    with BrokerProcess(tmp_path / "bus", kind="mosquitto") as broker:
        yield broker.port


def link_to(hub, folder) -> dict[str, object]:
    file = str(hub.connection_string(folder))
    identity = {"kind": "connection-string", "connection_string_file": file}
    return {"kind": "azure", "identity": identity, "ca": str(hub.authority.ca), "timeout_s": 5.0}


def test_killed_again_and_again_a_hub_has_each_record_in_order_within_60_mb(hub, tmp_path, bus_port) -> None:
    buffer = killed_under_load(tmp_path, bus_port, link_to(hub, tmp_path), kills=4)
    check(hub.arrived, repeats=True)
    assert buffer.metrics[-1].rss_mb <= 60


def test_it_stops_promptly_with_a_frozen_hub(hub, tmp_path, bus_port) -> None:
    settings = given("uplink", tmp_path, bus_port, "t", link=link_to(hub, tmp_path))
    uplink = ModuleProcess("uplink", settings, tmp_path / "uplink.log")
    uplink.start()
    eventually(lambda: hub.twin_reads, 20)  # it is open, with nothing to send
    hub.freeze()
    began = time.monotonic()
    assert uplink.stop() == 0
    assert time.monotonic() - began < 9
