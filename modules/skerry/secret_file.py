"""Secrets by reference: the one line of a file, which is never shown."""

from __future__ import annotations

import re
from pathlib import Path

from skerry.errors import ConfigError

_VISIBLE = re.compile(r"[!-~]([ -~]*[!-~])?")
_MOST_BYTES = 64 * 1024


def line(where: str, file: str) -> str:
    """The one line of a file.

    Args:
        where: the setting that names it.
        file: its path.

    Raises:
        ConfigError: it cannot be read, or is not one line of visible ASCII.
    """
    try:
        with Path(file).open("rb") as opened:
            text = opened.read(_MOST_BYTES).decode("ascii").strip("\r\n")
    except OSError as error:
        raise ConfigError(f"{where}: {file}: cannot read it: {error.strerror or error}") from error
    except UnicodeDecodeError:
        text = ""
    if not _VISIBLE.fullmatch(text):
        # Without the cause: it would carry what it could not decode.
        raise ConfigError(f"{where}: {file}: expected one line of visible ASCII, got something else")
    return text
