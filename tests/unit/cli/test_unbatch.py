"""`skerry unbatch`: batches in, one event a line out."""

import io
import json
from pathlib import Path

import pytest

from records import records
from skerry.batches import compressor, encode
from skerry.cli import main

RAWS = [r.raw for r in records(1, 30)]
ZSTD, GZIP = compressor("zstd"), compressor("gzip")


@pytest.fixture
def batches(tmp_path: Path) -> list[Path]:
    """Three files: zstd and a repeat of a part of it, gzip, and plain."""
    contents = [
        ZSTD(encode(RAWS[:10])) + ZSTD(encode(RAWS[5:10])),
        GZIP(encode(RAWS[10:20])),
        encode(RAWS[20:29]) + b"\n" + RAWS[29] + b"\n",
    ]
    paths = [tmp_path / f"{n}.batch" for n in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


def test_one_event_a_line_byte_for_byte(
    batches: list[Path], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["unbatch", *map(str, batches)]) == 0
    assert capfdbinary.readouterr().out.splitlines() == [*RAWS[:10], *RAWS[5:10], *RAWS[10:]]


def test_repeats_are_dropped_on_demand_over_all_files(batches: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "all.jsonl"
    assert main(["unbatch", "--dedupe", "-o", str(out), *map(str, batches), str(batches[0])]) == 0
    assert out.read_bytes().splitlines() == RAWS


def test_standard_input_is_read(
    batches: list[Path], monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    for arguments in (["unbatch"], ["unbatch", "-"]):
        content = io.BytesIO(b"".join(p.read_bytes() for p in batches))
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(content))
        assert main(arguments) == 0
        assert len(capfdbinary.readouterr().out.splitlines()) == 35


def test_what_comes_before_a_damaged_batch_is_printed(
    batches: list[Path], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    good = batches[0].read_bytes()
    batches[0].write_bytes(good[:-3])
    assert main(["unbatch", str(batches[0])]) == 65
    out, err = capfdbinary.readouterr()
    assert out.splitlines() == RAWS[:10]
    assert err.decode().startswith(f"{batches[0]}: byte ")
    assert "expected a whole batch, got a part of one (is it torn?)" in err.decode()


def test_an_event_with_a_line_feed_between_its_parts_is_one_line(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    path = tmp_path / "batch"
    path.write_text(json.dumps([{"a": 1, "b": [2]}], indent=2))
    assert main(["unbatch", str(path)]) == 0
    lines = capfdbinary.readouterr().out.splitlines()
    assert [json.loads(line) for line in lines] == [{"a": 1, "b": [2]}]


def test_dedupe_wants_events_of_ours(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    path = tmp_path / "batch"
    path.write_bytes(b'[{"a":1}]')
    assert main(["unbatch", "--dedupe", str(path)]) == 65
    assert b"expected an event with source, epoch and seq" in capfdbinary.readouterr().err


def test_files_that_cannot_be_read_or_written_are_named(
    tmp_path: Path, batches: list[Path], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    missing = tmp_path / "missing"
    assert main(["unbatch", str(missing)]) == 69
    assert f"{missing}: cannot read it: No such file" in capfdbinary.readouterr().err.decode()
    assert main(["unbatch", str(batches[0]), "-o", str(tmp_path)]) == 69
    assert f"{tmp_path}: cannot write it: Is a directory" in capfdbinary.readouterr().err.decode()
