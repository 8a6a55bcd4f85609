"""A command as somebody outside has written it: allowed, known and right, or refused with what is wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec

from skerry.commands import KINDS
from skerry.desired import depth
from skerry.errors import ConfigError
from skerry.remote import Refused
from skerry.settings import Settings, parse

MOST_BYTES = 16 * 1024
"""Of the arguments."""
_DEEPEST = 8
_LONGEST_SHOWN = 64
_MOST_PROBLEMS = 20

BAD, FORBIDDEN, UNKNOWN = 400, 403, 404


def read(name: str, body: bytes, allowed: Sequence[str]) -> Settings:
    """The arguments of a command.

    Args:
        name: of the command.
        body: its arguments as JSON; nothing, or null, for none.
        allowed: commands that the settings allow.

    Raises:
        Refused: with 404 it is not known, with 403 not allowed, with 400 its arguments are wrong; all
            problems are named.
    """
    known = ", ".join(sorted(allowed)) or "none"
    if name not in KINDS:
        raise Refused(UNKNOWN, f"command: expected one of {known}, got {shown(name)}")
    if name not in allowed:
        raise Refused(
            FORBIDDEN, f"{name}: the setting remote.commands does not allow it (it allows: {known})"
        )
    try:
        return parse(KINDS[name].arguments, _decoded(name, body), name)
    except ConfigError as error:
        problems = [problem[:300] for problem in error.problems[:_MOST_PROBLEMS]]
        raise Refused(BAD, "; ".join(problems)) from error


def shown(text: str) -> str:
    """What somebody wrote, quoted and cut, for an error."""
    cut = text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
    return json.dumps(cut)


def _decoded(name: str, body: bytes) -> Any:
    if len(body) > MOST_BYTES:
        raise Refused(BAD, f"{name}: expected at most {MOST_BYTES} bytes of arguments, got {len(body)}")
    try:
        data = msgspec.json.decode(body) if body.strip() else {}
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Refused(BAD, f"{name}: expected JSON, got something else ({str(error)[:200]})") from error
    if depth(data) > _DEEPEST:
        raise Refused(BAD, f"{name}: expected at most {_DEEPEST} levels, got more")
    return {} if data is None else data
