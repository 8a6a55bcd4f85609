"""The last lines of the log: bounded, and JSON whatever the form of the log itself."""

from __future__ import annotations

import io
import json

import pytest
import structlog

from skerry.logbook import LOGBOOK, Logbook
from skerry.service import configure_logging


def test_oldest_lines_make_room():
    book = Logbook(most_lines=3)
    for n in range(5):
        book.add(f'{{"n":{n}}}')
    assert book.last(10) == ['{"n":2}', '{"n":3}', '{"n":4}']
    assert book.last(1) == ['{"n":4}']
    assert book.last(0) == []


def test_bytes_are_bounded():
    book = Logbook(most_bytes=1000)
    for n in range(100):
        book.add(json.dumps({"n": n, "text": "x" * 90}))
    assert sum(map(len, book.last(100))) <= 1000
    assert json.loads(book.last(1)[0])["n"] == 99


def test_a_line_without_end_is_cut_and_still_json():
    book = Logbook()
    book.add(json.dumps({"event": "x" * 100_000}))
    (line,) = book.last(1)
    assert len(line) < 10_000
    assert json.loads(line)["event"] == "line.cut"


@pytest.mark.parametrize("form", ["json", "console"])
def test_what_is_logged_is_kept_in_either_form(form):
    before = structlog.get_config()
    sink = io.StringIO()
    try:
        configure_logging(form, "info", "gate", sink)
        log = structlog.get_logger()
        log.debug("not.shown")
        log.info("frame.dropped", reason="stale", url="rtsp://u:kanarie@cam/1")
    finally:
        structlog.configure(**before)
    kept = json.loads(LOGBOOK.last(1)[0])
    assert (kept["event"], kept["reason"], kept["module"], kept["level"]) == (
        "frame.dropped", "stale", "gate", "info",
    )  # fmt: skip
    assert kept["url"] == "rtsp://cam/1"
    assert "kanarie" not in sink.getvalue()
    assert "frame.dropped" in sink.getvalue()
    assert sink.getvalue().startswith("{") == (form == "json")
