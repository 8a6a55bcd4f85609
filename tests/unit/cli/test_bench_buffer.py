"""What `skerry bench buffer` counts, compares and says."""

import io
import math
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

import needs
from skerry.cli import bench_buffer, bench_drain, bench_peers, device
from skerry.cli.bench_appends import (
    PAYLOAD,
    READ,
    Log,
    RawFile,
    Slice,
    StoreLog,
    alternate,
    compare,
    payloads,
)
from skerry.cli.bench_site import Events
from skerry.cli.device import Counters, LoopDisk, parse_stat
from skerry.errors import Unavailable
from skerry.messages import Event

STAT = "298 0 3926 50 374 249 53156 42 0 536 552 2 0 524290 438 244 21"
PLENTY = math.inf


class Listed:
    """A log in memory that takes some time."""

    def __init__(self, pause_s: float = 0.0) -> None:
        self.kept: list[bytes] = []
        self.pause_s = pause_s

    def ready(self, payloads: Sequence[bytes]) -> Sequence[bytes]:
        return payloads

    def append(self, given: Sequence[bytes]) -> None:
        time.sleep(self.pause_s)
        self.kept += given

    def drain(self, most: int, deadline: float) -> int:
        taken, self.kept = self.kept, []
        return len(taken)

    def close(self) -> None:
        pass


class TestCounters:
    def test_bytes_writes_and_flushes_are_read_from_the_kernels_line(self) -> None:
        assert parse_stat(STAT) == Counters(bytes_written=53156 * 512, writes=374, flushes=244)

    def test_what_happened_since_is_the_difference(self) -> None:
        assert Counters(5000, 20, 7).since(Counters(1000, 5, 3)) == Counters(4000, 15, 4)

    def test_a_kernel_that_counts_no_flushes_is_refused(self) -> None:
        with pytest.raises(ValueError, match="expected 16 fields or more, got 11"):
            parse_stat("1 2 3 4 5 6 7 8 9 10 11")


class TestLoopDisk:
    def test_without_root_it_says_so_and_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        with pytest.raises(Unavailable, match="loop device: needs root"), LoopDisk(tmp_path, 1024):
            pass
        assert list(tmp_path.iterdir()) == []

    def test_a_tool_that_is_missing_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.setattr(device, "_TOOLS", ("sh", "no-such-tool"))
        assert device.why_not() == "needs no-such-tool"


class TestAlternate:
    def test_each_log_has_one_slice_a_round_and_the_first_of_a_round_changes(self) -> None:
        logs: dict[str, Log] = {"a": Listed(), "b": Listed()}
        order: list[str] = []
        alternate(logs, 3, slice_s=0.0, rounds=3, between=lambda name, _log: order.append(name))
        assert order == ["a", "b", "b", "a", "a", "b"]

    def test_a_round_in_several_visits_is_still_one_slice(self) -> None:
        logs: dict[str, Log] = {"a": Listed(), "b": Listed()}
        order: list[str] = []
        taken = alternate(
            logs, 3, slice_s=0.0, rounds=2, visits=3, between=lambda name, _log: order.append(name)
        )
        assert order == ["a", "b", "b", "a", "a", "b", "b", "a", "a", "b", "b", "a"]
        assert [len(slices) for slices in taken.values()] == [2, 2]

    def test_all_that_was_appended_is_whole_batches(self) -> None:
        log = Listed()
        alternate({"a": log}, 7, slice_s=0.001, rounds=2)
        assert log.kept
        assert len(log.kept) % 7 == 0

    def test_a_slower_log_has_a_ratio_below_one(self) -> None:
        taken = alternate({"limit": Listed(), "slow": Listed(pause_s=0.002)}, 1, slice_s=0.005, rounds=3)
        assert compare(taken, "limit")["slow"]["ratio"] < 1

    def test_a_ratio_is_the_median_of_those_of_each_round(self) -> None:
        limit = [Slice(100.0, 1.0), Slice(1000.0, 1.0), Slice(10.0, 1.0)]
        store = [Slice(90.0, 5.0), Slice(500.0, 6.0), Slice(8.0, 9.0)]
        found = compare({"raw": limit, "store": store}, "raw")
        assert found["store"] == {"per_s": 90.0, "ratio": 0.8, "cpu_us": 6.0}
        assert found["raw"]["ratio"] == 1.0


def logs(folder: Path) -> list[Log]:
    return [StoreLog(folder / "store"), bench_peers.Sqlite(folder / "sqlite")]


class TestLogs:
    def test_all_that_was_appended_can_be_drained(self, tmp_path: Path) -> None:
        for log in logs(tmp_path):
            for _ in range(3):
                log.append(log.ready(payloads(READ + 1)))
            assert log.drain(1000, PLENTY) == 3 * (READ + 1)
            assert log.drain(1000, PLENTY) == 0
            log.close()

    def test_a_drain_ends_at_its_deadline(self, tmp_path: Path) -> None:
        for log in logs(tmp_path):
            log.append(log.ready(payloads(10)))
            assert log.drain(1000, -PLENTY) == 0
            log.close()

    def test_the_limit_overwrites_what_is_on_disk_and_never_grows(self, tmp_path: Path) -> None:
        log = RawFile(tmp_path / "raw")
        size = (tmp_path / "raw" / "raw").stat().st_size
        given = log.ready(payloads(1000))
        for _ in range(20):
            log.append(given)
        assert (tmp_path / "raw" / "raw").stat().st_size == size
        log.close()
        log.close()

    @needs.mosquitto
    def test_mosquitto_keeps_for_a_reader_that_is_away_what_it_acknowledged(self, tmp_path: Path) -> None:
        log = bench_peers.Mosquitto(tmp_path / "mosquitto")
        try:
            log.append(log.ready(payloads(3)))
            log.append(log.ready(payloads(1)))
            assert log.drain(4, time.monotonic() + 20) == 4
            assert (tmp_path / "mosquitto" / "mosquitto.db").exists()
        finally:
            log.close()

    @needs.mosquitto
    def test_an_append_to_mosquitto_is_over_only_with_its_last_acknowledgement(self, tmp_path: Path) -> None:
        log = bench_peers.Mosquitto(tmp_path / "mosquitto")
        log._writer.close()
        log._writer, far = socket.socketpair()
        try:
            far.sendall(b"\x40\x02\x00\x01\x40\x02\x00\x02")
            far.shutdown(socket.SHUT_WR)
            with pytest.raises(Unavailable, match="closed the connection"):
                log.append(log.ready(payloads(3)))
        finally:
            far.close()
            log.close()

    @needs.nats
    def test_nats_keeps_what_it_acknowledged(self, tmp_path: Path) -> None:
        peer = bench_peers.survey(tmp_path)["nats"]
        log = bench_peers.make("nats", peer, tmp_path / "nats")
        try:
            log.append(log.ready(payloads(3)))
            assert log.drain(3, time.monotonic() + 20) == 3
        finally:
            log.close()


class TestPackets:
    @pytest.mark.parametrize("size", [0, 127, 128, 16_383, 16_384, 2_097_152])
    def test_a_publish_is_found_and_acknowledged_whatever_its_size(self, size: int) -> None:
        body = b"\x00\x01q\x12\x34" + bytes(size)
        packet = b"\x32" + bench_peers._length(len(body)) + body
        pending = bytearray(packet + packet[:-1])
        assert bench_peers._acknowledge(pending) == [b"\x40\x02\x12\x34"]
        assert bytes(pending) == packet[:-1]

    def test_other_packets_are_passed_over(self) -> None:
        pending = bytearray(b"\x90\x03\x00\x01\x01" + b"\xd0\x00" + b"\x32\x05\x00\x01q\x00\x07")
        assert bench_peers._acknowledge(pending) == [b"\x40\x02\x00\x07"]
        assert not pending


class TestSurvey:
    def test_a_peer_that_is_not_installed_says_so(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(bench_peers, "_SBIN", str(tmp_path))
        monkeypatch.setattr("skerry.broker._SBIN", str(tmp_path))
        found = bench_peers.survey(tmp_path)
        assert found["mosquitto"].missing == "mosquitto is not installed"
        assert found["nats"].missing == "nats-server is not installed"
        assert not found["sqlite"].missing

    def test_a_peer_that_does_not_start_says_so_and_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(_folder: Path) -> Log:
            raise Unavailable("mosquitto: did not answer within 10 s")

        monkeypatch.setattr(bench_peers, "Mosquitto", fail)
        monkeypatch.setattr(bench_peers, "_survey_mosquitto", lambda: bench_peers.Peer("autosave"))
        found = bench_peers.survey(tmp_path)["mosquitto"]
        assert found == ("autosave", "mosquitto does not work here: mosquitto: did not answer within 10 s")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(("knows", "said"), [(0, "sync_interval: always"), (1, "every 2 minutes")])
    def test_a_server_that_cannot_sync_always_is_named_for_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, knows: int, said: str
    ) -> None:
        server = tmp_path / "nats-server"
        server.write_text(f'#!/bin/sh\n[ "$1" = -v ] && echo nats-server: v2.0.0 && exit\nexit {knows}\n')
        server.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
        found = bench_peers._survey_nats(tmp_path)
        assert found.setting.startswith("v2.0.0")
        assert said in found.setting


class TestEvents:
    def test_the_bytes_made_fast_are_those_of_the_event(self) -> None:
        events = Events()
        made = events.event(1234)
        fast = msgspec.json.decode(events.encoded(1234), type=Event)
        assert msgspec.structs.replace(fast, monotonic=made.monotonic) == made

    def test_an_event_is_about_as_large_as_a_payload(self) -> None:
        events = Events()
        sizes = [len(events.encoded(seq)) for seq in range(1, 1001)]
        assert 0.9 * PAYLOAD < sum(sizes) / len(sizes) < 1.1 * PAYLOAD


class TestWaiting:
    def test_a_filled_store_opens_and_drains_through_a_file(self, tmp_path: Path) -> None:
        count = bench_drain.fill(tmp_path / "log", 600_000)
        assert count * PAYLOAD >= 600_000
        opened = bench_drain.opening(tmp_path / "log")
        assert opened["waiting"] == count
        assert opened["rss_mb"] > 0

    @needs.mosquitto
    def test_each_link_takes_its_share(self, tmp_path: Path) -> None:
        count = bench_drain.fill(tmp_path / "log", 600_000)
        assert count >= 1000
        rates = bench_drain.through_links(tmp_path / "log", tmp_path / "far", 500)
        assert set(rates) == {"file", "mqtt_zstd_batches"}
        assert len((tmp_path / "far" / "far.jsonl").read_bytes().splitlines()) == 500


def figures() -> dict[str, object]:
    """All of them met, but the latency."""
    log = {"per_s": 5000.0, "ratio": 0.9, "cpu_us": 20.0}
    weighed = {
        "appends": 10, "per_s": 9000.0, "flushes_per_append": 1.0, "device_bytes_per_payload_byte": 1.2,
        "device_bytes_per_payload_byte_first_pass": 2.2, "drain_per_s": 100_000,
    }  # fmt: skip
    batches = ("batch_1", "batch_100")
    timed = ("raw", "store", "store_link_down", "sqlite")
    return {
        "payload_bytes": 512,
        "cpus": 2,
        "load_before_and_after": [0.1, 0.2],
        "peers": {
            "sqlite": {"setting": "WAL", "missing": ""},
            "nats": {"setting": "always", "missing": "nats-server is not installed"},
        },
        "appends": {
            how: {b: dict.fromkeys(timed, log) for b in batches}
            for how in ("side_by_side", "turns", "by_append")
        },
        "device": {n: dict.fromkeys(batches, weighed) for n in ("raw", "store", "sqlite")},
        "accept": {
            "broker": "mosquitto", "ack_ms_at_200_per_s": {"p50": 7.0, "p99": 21.0}, "events_per_s": 4000,
            "events_per_s_ten_a_message": 14_000, "buffer_rss_mb": 40.0,
        },
        "waiting": {"bytes": 2**30, "records": 2_000_000},
        "open": {"open_s": 0.2, "waiting": 2_000_000, "rss_mb": 35.0},
        "drain_links": {"file": 200_000, "mqtt_zstd_batches": 90_000},
        "drain_bus": {
            n: {"per_s": 110_000, "buffer_rss_mb": 45.0, "uplink_rss_mb": 40.0}
            for n in ("file", "mqtt_zstd_batches")
        },
    }  # fmt: skip


class TestTable:
    def test_each_figure_is_held_against_what_is_wanted(self) -> None:
        missed = [row.what for row in bench_buffer.rows(figures()) if not row.met]
        assert missed == ["the same at 200/s, p99 ms"]

    def test_what_was_not_measured_says_why_and_is_not_met(self) -> None:
        given = figures()
        given["device"] = {"missing": "loop device: needs root"}
        rows = [row for row in bench_buffer.rows(given) if row.what.startswith("device bytes")]
        assert [row.got for row in rows] == ["loop device: needs root"] * 2
        assert [row.met for row in rows] == [None, None]

    @pytest.mark.parametrize("part", ["appends", "accept", "open", "drain_links", "drain_bus"])
    def test_any_part_may_be_missing(self, part: str) -> None:
        given = {**figures(), part: {"missing": "no broker"}}
        assert any(row.got == "no broker" for row in bench_buffer.rows(given))
        Console(file=io.StringIO(), width=200).print(bench_buffer.table(given))

    def test_memory_counts_only_when_every_part_was_seen(self) -> None:
        given = {**figures(), "accept": {"missing": "no broker"}}
        memory = next(row for row in bench_buffer.rows(given) if row.what.startswith("memory"))
        assert memory.met is False

    def test_a_peer_that_is_missing_has_its_line(self) -> None:
        console = Console(width=300, record=True, file=io.StringIO())
        console.print(bench_buffer.table(figures()))
        assert "not measured: nats-server is not installed (always)" in console.export_text()
