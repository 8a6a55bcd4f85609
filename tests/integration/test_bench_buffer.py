"""`skerry bench buffer` from end to end, with as little as shows that it measures what it says."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

import needs
from skerry.cli import bench_buffer
from skerry.cli.bench_buffer import Size

TINY = Size(
    rounds=1, slice_s=0.01, pairs=3, first_pass=20, recycled=(10,), weighed=5, weigh_s=0.5, steady_s=0.2,
    flood=100, waiting_bytes=4 * 1024 * 1024, links=1000, bus_s=0.5,
)  # fmt: skip


@needs.mosquitto
@pytest.mark.slow
def test_every_part_is_measured_or_says_why_not(tmp_path: Path) -> None:
    said: list[str] = []
    figures = bench_buffer.run(size=TINY, folder=tmp_path, say=said.append)
    assert list(tmp_path.iterdir()) == []
    assert json.loads(json.dumps(figures)) is not None
    for part in ("appends", "accept", "open", "drain_links", "drain_bus"):
        assert "missing" not in figures[part], figures[part]
    assert figures["accept"]["ack_ms_at_200_per_s"]["count"] == 40
    assert figures["open"]["waiting"] == figures["waiting"]["records"]
    assert {name for name, peer in figures["peers"].items() if not peer["missing"]} <= set(
        figures["appends"]["side_by_side"]["batch_100"]
    )
    if "missing" not in figures["device"]:
        assert figures["device"]["raw"]["batch_1"]["flushes_per_append"] == 1.0
        weighed = figures["device"]["store"]
        assert weighed["batch_1"]["flushes_per_append"] >= 1.0
        assert figures["device"].get("nats_mount_sync", weighed)["batch_1"]["flushes_per_append"] >= 1.0
    assert [row["what"] for row in figures["wanted"]] == [row.what for row in bench_buffer.rows(figures)]
    assert len(said) > 5
    screen = Console(file=io.StringIO(), width=200, record=True)
    screen.print(bench_buffer.table(figures))
    text = screen.export_text()
    assert all(row.what in text for row in bench_buffer.rows(figures))
