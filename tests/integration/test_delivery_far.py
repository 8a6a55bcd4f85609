"""Deliveries from a web server that lies or breaks off, and under clocks that are wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import needs
from bus_process import ModuleProcess
from clocks import YEAR_S, WallClock, built
from delivery import Device, Maker, Wired, wired
from file_server import FileServer, Manner
from skerry import audit
from skerry.broker import BrokerProcess
from tiny_models import bright_model, write_package

AT_ONCE = {"shadow_frames": 1, "probation_s": 0}


def box(n: int) -> tuple[float, float, float, float]:
    """No two versions have the same weights."""
    return 0.5, 0.5, 0.25 + n / 1000, 0.5


@pytest.mark.parametrize(
    "manner",
    [
        Manner(headers={"Content-Length": str(1 << 40)}),
        Manner(headers={"Content-Length": "999999999"}, more=b"x" * 100),
        Manner(status=302, headers={"Location": "file:///etc/passwd"}),
        Manner(raw=b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100_000, repeat=30),
    ],
    ids=["a length that is a lie", "a length of what is not there", "a redirect elsewhere", "endless"],
)
def test_a_web_server_that_lies_changes_nothing_and_a_good_one_is_taken_after_it(
    tmp_path: Path, manner: Manner
) -> None:
    maker = Maker(tmp_path)
    device = Device(tmp_path / "device")
    write_package(device.path / "bundled", bright_model(), version="1.0.0")
    maker.publish_root(device)
    new = maker.release("1.1.0", bright_model(box=box(1)))
    with FileServer(maker.folder) as server:
        device.sources = [{"kind": "http", "url": server.url}]
        server.manner = manner
        patient = {"check_s": 0.2, "fetch": {"timeout_s": 1, "patience_s": 1}}
        with device.on(device.use(exchange=AT_ONCE), updater=patient):
            device.frames()
            asked = len(server.asked)
            device.until(lambda: len(device.results) > 10 and len(server.asked) > asked + 2)
            assert device.named().digests == frozenset()
            assert {result.model for result in device.results} == {"tiny@1.0.0"}
            server.manner = Manner()
            device.until(lambda: device.serves(new) and device.ailment == "")


@pytest.fixture
def device(tmp_path: Path, shared_broker: BrokerProcess, unique_site: str) -> Iterator[Wired]:
    with wired(tmp_path / "device", shared_broker.port, unique_site) as device:
        yield device


@needs.mosquitto
@needs.compiler
@pytest.mark.timeout(200)
def test_clocks_of_1970_and_14_years_ahead_stop_nothing_for_good(tmp_path: Path, device: Wired) -> None:
    """Believed, a clock that is ahead refuses for as long as it is; not believed, it refuses nothing."""
    maker = Maker(tmp_path)
    maker.publish_root(device)
    clock = WallClock(built(tmp_path), tmp_path / "clock")
    clock.set(-50 * YEAR_S)
    clock.synchronise(False)
    settings = device.given("updater", check_s=0.2)
    updater = ModuleProcess("updater", settings, device.path / "updater.log", environment=clock.environment)
    first, second, third = (maker.release(f"1.{n}.0", bright_model(box=box(n))) for n in (1, 2, 3))

    def offer(version: object) -> None:
        device.desire("updater", str(version), {"slots": {"belt": {"version": version}}})

    offer("1.1.0")
    with device.inferring(device.use(exchange=AT_ONCE)):
        device.frames()
        updater.start()
        try:
            device.until(lambda: device.serves(first))  # 1970, and nobody believes it
            clock.synchronise(True)
            offer("1.2.0")
            device.until(lambda: device.serves(second))  # 1970 is before what was signed: it cannot be
            clock.set(14 * YEAR_S)
            device.until(lambda: device.audited("refused"))
            refused = str(device.audited("refused")[-1].fields["reason"])
            assert "expired keys" in refused
            assert device.serves(second)
            maker.release("1.4.0", bright_model(box=box(4)))
            offer("1.4.0")
            seen = len(device.results)
            device.until(lambda: len(device.results) > seen + 30)
            assert device.serves(second), "nothing is taken that is not vouched for now"
            clock.synchronise(False)
            offer("1.3.0")
            device.until(lambda: device.serves(third))
            newest = maker.release("1.5.0", bright_model(box=box(5)))
            clock.set(0)
            clock.synchronise(True)
            offer("1.5.0")
            device.until(lambda: device.serves(newest))
        finally:
            assert updater.stop() == 0
            clock.close()
        device.still()
    assert audit.verify(device.path / "updater" / "audit").problems == ()
