"""Secrets taken out of what leaves the site: logs in bundles, settings, answers, the audit.

Three nets, each behind the other: what is called a secret (a key, a parameter of an address), what looks
like one (a login in an address, a bearer token, a private key), and what is one (the content of the files
that settings name). It takes out rather too much.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

GONE = "***"

_SHORTEST = 4
"""Characters of a secret that is looked for; shorter ones are in every other word."""
_MOST_BYTES = 64 * 1024
_DEEPEST = 32

_LOGIN = re.compile(r"""(?<=://)[^\s"'<>]{0,2048}@""")
"""Up to the last @ of the word: an unquoted password may have an @ or a / in it. Bounded, so that no text
takes longer than its length."""
_WORD = (
    r"pass(?:word|wd|phrase)?|pwd|secret|token|sig(?:nature)?|api[-_]?key|access[-_]?key|account[-_]?key"
    r"|private[-_]?key|symmetric[-_]?key|shared[-_]?access[-_]?(?:key|signature)|credentials?"
    r"|authorization|cookie"
)
_PARAMETER = re.compile(rf"""(?i)((?:{_WORD})["']?\s*=\s*["']?)[^\s&;,"'<>]+""")
_HEADER = re.compile(
    rf"""(?i)((?:{_WORD})["']?\s*:\s*)(?:"[^"]*"|'[^']*'|(?:(?:bearer|basic)\s+)?[^\s&;,"'<>]+)"""
)
_SCHEME = re.compile(r"(?i)\b((?:bearer|basic|sharedaccesssignature)\s+)[A-Za-z0-9+/=._~%&-]{8,}")
_PRIVATE = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
)
_KEY = re.compile(rf"(?i)(?:^|[-_.]|(?<=[a-z]))(?:{_WORD}|connection[-_]?string)$")
_FILE = re.compile(r"(?i)_files?$|^(?:[a-z]+_)?key$")
"""Settings that name files with secrets in them: `password_file`, `header_files`, `key` and `claim_key`."""


def cleaned(text: str, secrets: Iterable[str] = ()) -> str:
    """Text without what looks like a secret, and without these.

    Args:
        text: of any length and origin.
        secrets: as `known_secrets` gives them.
    """
    for secret in secrets:
        text = text.replace(secret, GONE)
    text = _PRIVATE.sub(GONE, text)
    text = _LOGIN.sub("", text)
    text = _SCHEME.sub(rf"\1{GONE}", text)
    text = _PARAMETER.sub(rf"\1{GONE}", text)
    return _HEADER.sub(rf"\1{GONE}", text)


def redacted(data: Any, secrets: Iterable[str] = ()) -> Any:
    """Plain data (JSON) without secrets; what is nested more deeply than anything of ours is cut off."""
    return _redacted(data, tuple(secrets), 0)


def _redacted(data: Any, secrets: tuple[str, ...], depth: int) -> Any:
    if depth > _DEEPEST:
        return GONE
    if isinstance(data, Mapping):
        return {
            cleaned(str(key), secrets): GONE
            if isinstance(value, str) and value and _KEY.search(str(key))
            else _redacted(value, secrets, depth + 1)
            for key, value in data.items()
        }
    if isinstance(data, list | tuple):
        return [_redacted(value, secrets, depth + 1) for value in data]
    return cleaned(data, secrets) if isinstance(data, str) else data


def without_logins(data: Any) -> Any:
    """Plain data with what looks like a secret taken out of each text in it; keys stay as they are."""
    if isinstance(data, Mapping):
        return {key: without_logins(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [without_logins(value) for value in data]
    return cleaned(data) if isinstance(data, str) else data


def known_secrets(settings: Any) -> tuple[str, ...]:
    """What is in the files with secrets that settings name, longest first, also as addresses quote it.

    Args:
        settings: plain data.
    """
    found: set[str] = set()
    for path in _files(settings):
        try:
            with Path(path).open("rb") as file:
                content = file.read(_MOST_BYTES)
        except (OSError, ValueError):
            continue  # nothing that could be given away; who needs the file says so
        for line in content.decode(errors="replace").splitlines():
            secret = line.strip()
            found.update(
                {secret, quote(secret, safe=""), quote_plus(secret), secret.partition("SharedAccessKey=")[2]}
            )
    return tuple(sorted((s for s in found if len(s) >= _SHORTEST), key=lambda s: (-len(s), s)))


def _files(data: Any, secret: bool = False) -> Iterator[str]:
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from _files(value, secret or bool(_FILE.search(str(key))))
    elif isinstance(data, list | tuple):
        for value in data:
            yield from _files(value, secret)
    elif secret and isinstance(data, str) and data:
        yield data
