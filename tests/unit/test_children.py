import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from skerry.children import end, fastest_launcher, python_launcher, spawn
from skerry.errors import Unavailable
from skerry.testing import eventually

PARENT = """
import sys, time
from skerry.children import fastest_launcher, python_launcher, spawn
launcher = python_launcher() if sys.argv[1] == "python" else fastest_launcher()
print(spawn(["sleep", "600"], launcher=launcher).pid, flush=True)
time.sleep(600)
"""

DEAF = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(1, flush=True)
time.sleep(600)
"""


def stat(pid: int) -> list[str]:
    """State, parent, group, session, ... (proc(5), /proc/pid/stat after the name); empty when gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return []


def name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


@pytest.mark.parametrize("launcher", ["python", "fastest"])
def test_child_dies_with_a_parent_that_was_killed_with_9(launcher):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, launcher], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    eventually(lambda: name(child) == "sleep")
    parent.kill()
    parent.wait()
    parent.stdout.close()
    eventually(lambda: stat(child)[:1] in ([], ["Z"]))


@pytest.mark.parametrize("launcher", [python_launcher, fastest_launcher])
def test_child_leads_a_session_of_its_own_under_its_own_pid(launcher):
    child = spawn(["sleep", "600"], launcher=launcher())
    try:
        eventually(lambda: name(child.pid) == "sleep")
        assert int(stat(child.pid)[3]) == child.pid
        assert int(stat(child.pid)[1]) == os.getpid()
    finally:
        assert end(child, 10) == -signal.SIGTERM


def test_child_gets_just_the_environment_and_output_it_is_given(tmp_path):
    with (tmp_path / "out").open("wb") as out:
        child = spawn(["/usr/bin/env"], {"ONLY": "this"}, stdout=out.fileno(), cwd=tmp_path)
        assert child.wait(30) == 0
    assert (tmp_path / "out").read_text() == "ONLY=this\n"


def test_child_that_ignores_sigterm_is_killed_after_its_grace():
    child = spawn(
        [sys.executable, "-c", DEAF],
        stdout=subprocess.PIPE,
    )
    assert child.stdout.readline() == b"1\n"
    assert end(child, 0.1) == -signal.SIGKILL
    assert end(child, 0.1) == -signal.SIGKILL
    child.stdout.close()


def test_program_that_is_not_there_is_unavailable():
    with pytest.raises(Unavailable, match="no-such-program: expected a program, found none in PATH"):
        spawn(["no-such-program"])
