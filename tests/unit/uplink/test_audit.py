"""The audit: whole lines, two files, and nothing that a full disk or a hostile value could stop."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from structlog.testing import capture_logs

import needs
from skerry.testing import eventually
from skerry.uplink.audit import Audit


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_added_with_their_time(tmp_path):
    for n in range(2):
        Audit(tmp_path / "state", now=lambda: "T").write(what="x", n=n)
    assert lines(tmp_path / "state" / "audit.jsonl") == [
        {"time": "T", "what": "x", "n": 0}, {"time": "T", "what": "x", "n": 1},
    ]  # fmt: skip
    assert (tmp_path / "state" / "audit.jsonl").stat().st_mode & 0o077 == 0


def test_the_file_is_exchanged_when_it_is_full_and_two_are_kept(tmp_path):
    audit = Audit(tmp_path, most_bytes=1000)
    for n in range(100):
        audit.write(n=n)
    now, before = lines(audit.path), lines(audit.before)
    assert [entry["n"] for entry in [*before, *now]] == list(range(before[0]["n"], 100))
    assert audit.path.stat().st_size <= 1000
    assert audit.before.stat().st_size <= 1000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["audit.1.jsonl", "audit.jsonl"]


def test_a_line_that_was_torn_spoils_no_other(tmp_path):
    (tmp_path / "audit.jsonl").write_text('{"n":1}\n{"n":')
    Audit(tmp_path).write(n=2)
    assert [json.loads(line)["n"] for line in (tmp_path / "audit.jsonl").read_text().splitlines()[::2]] == [
        1,
        2,
    ]


def test_secrets_and_what_is_no_json_and_what_is_too_long_are_written_otherwise(tmp_path):
    audit = Audit(tmp_path)
    audit.write(arguments={"password": "canary", "url": "rtsp://u:canary@h"})
    audit.write(value={1, 2}, path=tmp_path)
    audit.write(value="x" * 100_000)
    audit.write(value=10**400)
    assert "canary" not in audit.path.read_text()
    assert len(lines(audit.path)) == 4
    assert lines(audit.path)[2]["what"] == "audit.cut"
    assert audit.path.stat().st_size < 10_000


def test_what_could_not_be_written_is_logged_once_and_counted(tmp_path):
    audit = Audit(tmp_path / "state")
    (tmp_path / "state").write_text("in the way")
    with capture_logs() as logs:
        for n in range(3):
            audit.write(n=n)
        (tmp_path / "state").unlink()
        audit.write(n=3)
    assert [entry["event"] for entry in logs] == ["audit.not_written", "audit.written_again"]
    gap, line = lines(audit.path)
    assert (gap["what"], gap["missing"], line["n"]) == ("audit.gap", 3, 3)


def test_file_that_can_take_no_more_keeps_whole_lines(tmp_path):
    audit = Audit(tmp_path)
    audit.write(n=0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (audit.path.stat().st_size + 20, before[1]))
    try:
        with capture_logs():  # the log itself may be a file
            audit.write(n=1, text="more than there is room for")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    audit.write(n=2)
    first, gap, last = lines(audit.path)
    assert (first["n"], gap["what"], gap["missing"], last["n"]) == (0, "audit.gap", 1, 2)


def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").write_text("")
    (tmp_path / "audit.jsonl").symlink_to(tmp_path / "elsewhere")
    Audit(tmp_path).write(n=1)
    assert (tmp_path / "elsewhere").read_text() == ""


def test_threads_write_whole_lines(tmp_path):
    audit = Audit(tmp_path, most_bytes=10**6)
    threads = [
        threading.Thread(target=lambda t=t: [audit.write(t=t, n=n) for n in range(100)]) for t in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lines(audit.path)) == 400


WRITER = """
import sys
from pathlib import Path
from skerry.uplink.audit import Audit
audit = Audit(Path(sys.argv[1]))
for n in range(10**9):
    audit.write(n=n)
    print(n, flush=True)
"""


def test_lines_outlive_a_kill(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        for _ in range(200):
            said = int(child.stdout.readline())
    finally:
        child.kill()
        said = max([said, *(int(n) for n in child.stdout.read().split("\n")[:-1])])
        child.wait()
        child.stdout.close()
    assert [entry["n"] for entry in lines(tmp_path / "audit.jsonl")][: said + 1] == list(range(said + 1))


@needs.small_disks
def test_full_disk_stops_nothing(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], check=True)
    try:
        audit = Audit(tmp_path)
        for n in range(2000):
            audit.write(n=n, text="x" * 100)
        kept = lines(audit.path)
        assert [entry["n"] for entry in kept] == list(range(len(kept)))
        assert len(kept) < 2000
    finally:
        eventually(lambda: not subprocess.run(["umount", tmp_path], check=False).returncode)


@pytest.mark.parametrize("name", ["time", "what"])
def test_fields_may_have_any_name(tmp_path, name):
    Audit(tmp_path).write(**{name: "mine"})
    assert lines(tmp_path / "audit.jsonl")[0][name] == "mine"
