"""Starting child processes that never outlive their parent.

Each child leads a session of its own, so Ctrl-C reaches the supervisor alone and it decides the order
of stopping. And each asks the kernel for SIGTERM when its parent dies, even of kill -9, so no orphan
stays behind with a camera or a port.

That request (PR_SET_PDEATHSIG) must be made in the child. A `preexec_fn` could, but it runs Python
between fork and exec, which may deadlock in a process with threads, and it makes `Popen` copy the
parent's page tables. So a child is started through `setpriv` where util-linux provides it (0.3 ms) and
through this file elsewhere (35 ms: one more start of the interpreter).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from skerry.errors import Unavailable

_PR_SET_PDEATHSIG = 1
Output = int | None
"""A file descriptor, `subprocess.DEVNULL`, `subprocess.PIPE`, or None to inherit."""


def spawn(
    argv: Sequence[str],
    env: Mapping[str, str] | None = None,
    *,
    stdout: Output = None,
    stderr: Output = None,
    cwd: Path | None = None,
    launcher: Sequence[str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a child that ends with us; its pid is the program's own (launchers exec).

    Call it from a thread that outlives the child, best the main one: the kernel takes the death of
    the thread that forked for the death of the parent.

    Args:
        argv: the program and its arguments; the program is a path, or looked up in PATH.
        env: the child's whole environment; None inherits ours.
        stdout: where its output goes.
        stderr: where its errors go.
        cwd: its working directory; None inherits ours.
        launcher: what makes the request to the kernel and then execs; None takes the fastest here.

    Raises:
        Unavailable: there is no such program.

    Source: prctl(2), PR_SET_PDEATHSIG.
    """
    program = shutil.which(argv[0])
    if program is None:
        raise Unavailable(f"{argv[0]}: expected a program, found none in PATH (install it)")
    return subprocess.Popen(
        [*(fastest_launcher() if launcher is None else launcher), program, *argv[1:]],
        env=None if env is None else dict(env),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        cwd=cwd,
        start_new_session=True,
    )


@cache
def fastest_launcher() -> tuple[str, ...]:
    """`setpriv` of util-linux, or the interpreter."""
    setpriv = shutil.which("setpriv")
    # BusyBox has a setpriv too, without --pdeathsig.
    if setpriv is not None and "busybox" not in Path(setpriv).resolve().name:
        return (setpriv, "--pdeathsig", "TERM")
    return python_launcher()


def python_launcher() -> tuple[str, ...]:
    """The launcher that needs nothing but Python: this file, without site packages."""
    return (sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()))


_LAUNCH = f"""\
import ctypes, os, sys
ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, {int(signal.SIGTERM)})
if os.getppid() != int(sys.argv[1]):  # it died before we asked
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def end(child: subprocess.Popen[bytes], grace_s: float) -> int:
    """Ask a child to end with SIGTERM, insist with SIGKILL after `grace_s` seconds; its exit code."""
    if child.poll() is None:
        child.terminate()
    try:
        return child.wait(grace_s)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()
