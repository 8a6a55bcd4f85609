"""A process that exchanges its model, and is killed at a step of it: FOLDER STEP."""

import os
import signal
import sys
from pathlib import Path

import structlog

from integration.test_exchange import QUICK, Exchanging


def main(folder: Path, step: str) -> None:
    def die_at_it(_logger: object, _method: str, entry: dict) -> dict:
        if entry.get("event") == "model.step" and entry.get("step") == step:
            os.kill(os.getpid(), signal.SIGKILL)
        raise structlog.DropEvent

    structlog.configure(processors=[die_at_it])
    site = Exchanging(folder)
    camera = site.camera()
    with site.running(site.use(exchange=QUICK)):
        site.offer(camera, "1", "next")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
