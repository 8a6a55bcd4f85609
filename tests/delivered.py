"""The updater or inference as a process that kills itself at a moment: FILE of its settings, KIND, MOMENT.

A moment is `before` or `after`, and one of

    audit WHAT [STEP]     an entry of the audit log is written
    disk CALL N           the nth call of that name on the store's disk since the start
    log EVENT [STEP]      something is logged
    publish CHANNEL N     the nth message on a channel
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import structlog

from skerry.adjuster import Adjuster
from skerry.audit import AuditLog
from skerry.mqtt import MqttBus
from skerry.service import Host
from skerry.settings import parse
from skerry.updater.disk import Disk


class Death:
    """Comes at its moment.

    Args:
        when: `before` or `after`.
        what: the rest of the moment.
    """

    def __init__(self, when: str, *what: str) -> None:
        self._when = when
        self._what = what
        self._seen: Counter[tuple[str, ...]] = Counter()

    def at(self, kind: str, *names: str, call: Any = lambda: None) -> Any:
        """Do something, and die if this was the moment."""
        self._seen[kind, names[0]] += 1
        counted = kind in ("disk", "publish")
        wanted = self._what[:2] == (kind, names[0]) and (
            self._what[2:] == (str(self._seen[kind, names[0]]),)
            if counted
            else all(name in names for name in self._what[2:])
        )
        if wanted and self._when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = call()
        if wanted:
            os.kill(os.getpid(), signal.SIGKILL)
        return result


def main(file: Path, kind: str, *moment: str) -> None:
    death = Death(*moment)

    def logged(_logger: object, _method: str, entry: dict[str, Any]) -> dict[str, Any]:
        print(entry, file=sys.stderr, flush=True)
        death.at("log", str(entry.get("event")), str(entry.get("step")))
        raise structlog.DropEvent

    structlog.configure(processors=[logged])
    append = AuditLog.append
    AuditLog.append = lambda self, what, **fields: death.at(  # type: ignore[method-assign] # to die in it
        "audit", what, str(fields.get("step")), call=lambda: append(self, what, **fields)
    )
    for name in ("create", "write", "truncate", "sync", "rename", "link", "symlink", "unlink", "sync_folder"):
        call = getattr(Disk, name)
        setattr(
            Disk, name, lambda *args, name=name, call=call: death.at("disk", name, call=lambda: call(*args))
        )
    publish = MqttBus.publish
    MqttBus.publish = lambda self, channel, *args: death.at(  # type: ignore[method-assign] # as above
        "publish", channel.name, call=lambda: publish(self, channel, *args)
    )
    if kind == "updater":
        from skerry.updater.module import run
        from skerry.updater.settings import UpdaterSettings as Settings
    else:
        from skerry.inference.module import run
        from skerry.inference.settings import InferenceSettings as Settings
    settings = parse(Settings, msgspec.json.decode(file.read_bytes()), "test")
    bus = MqttBus(settings.bus, settings.site, settings.module)
    adjuster = Adjuster(settings, Path(settings.state) / "desired.json")
    host = Host(adjuster.now, kind, bus, adjuster)
    host.remote.start()
    bus.connect()
    run(adjuster.now, bus, host)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
