"""What a module tells of itself when an operator asks for diagnostics; secrets are taken out here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from skerry.logbook import Logbook
from skerry.redact import cleaned, known_secrets, redacted

if TYPE_CHECKING:
    from skerry.service import Host

_LOG_BYTES = 192 * 1024
"""Of the log, at most; an answer must fit into its channel, and the uplink holds those of all modules."""


class Gatherer:
    """Gathers the diagnostics of one process.

    Args:
        host: of the process.
        logbook: what it logged.
    """

    def __init__(self, host: Host, logbook: Logbook) -> None:
        self._host = host
        self._logbook = logbook
        # A secret that is exchanged later may be in what was logged before.
        self._secrets = set(self._known())

    def gather(self, lines: int) -> dict[str, Any]:
        """The body of the answer: `log`, `ledger`, `metrics`, `settings` and `status`.

        Args:
            lines: of the log, the last ones.
        """
        host = self._host
        self._secrets.update(self._known())
        secrets = tuple(sorted(self._secrets, key=lambda s: (-len(s), s)))
        state, reason = host.condition
        inventory = msgspec.to_builtins(host.remote.inventory)
        deployed = inventory.pop("settings")
        report = host.remote.report
        return {
            "log": _newest([_line(line, secrets) for line in self._logbook.last(lines)]),
            "ledger": host.tally.snapshot(),
            "metrics": {
                "counters": host.telemetry.values(),
                "latency_ms": msgspec.to_builtins(host.telemetry.quantiles()),
            },
            "settings": redacted(
                {
                    "deployed": deployed,
                    "now": msgspec.to_builtins(host.remote.settings),
                    "desired": None if report is None else msgspec.to_builtins(report),
                },
                secrets,
            ),
            "status": redacted({**inventory, "state": state, "reason": reason}, secrets),
        }

    def _known(self) -> tuple[str, ...]:
        return known_secrets(msgspec.to_builtins(self._host.remote.settings))


def _line(line: str, secrets: tuple[str, ...]) -> str:
    try:
        entry = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return cleaned(line, secrets)
    return msgspec.json.encode(redacted(entry, secrets)).decode()


def _newest(lines: list[str]) -> list[str]:
    """As many of the last lines as there is room for, oldest first."""
    size = 0
    for n, line in enumerate(reversed(lines)):
        size += len(line.encode()) + 1
        if size > _LOG_BYTES:
            return lines[len(lines) - n :]
    return lines
