"""A module that behaves as its first argument says, for tests of what every process shares."""

import sys
import time

from skerry.bus import Bus
from skerry.errors import PackageError, Unavailable
from skerry.service import Host, main
from skerry.settings import ModuleSettings


def run(settings: ModuleSettings, bus: Bus, host: Host) -> None:
    behaviour = sys.argv[1]
    if behaviour == "crash":
        raise RuntimeError("as asked")
    if behaviour == "package":
        raise PackageError("model.yaml: as asked")
    if behaviour == "unavailable":
        raise Unavailable("camera: as asked")
    if behaviour == "bad-gauge":
        host.before_metrics(lambda: 1 / 0)
    host.ready()
    if behaviour == "crash-later":
        time.sleep(0.3)
        raise RuntimeError("later, as asked")
    host.telemetry.count("skerry_odd_total", 3, camera="gate")
    host.telemetry.latency("decide", camera="gate").add(7.0)
    host.tally.add({"seen": 1})
    while not host.stopping.wait(0.01):
        if behaviour != "stall":
            host.beat()
        if behaviour == "degraded":
            host.fault("camera gate", "no signal")
    if behaviour == "never-drains":
        time.sleep(600)
    if behaviour == "drains":
        time.sleep(0.5)
        host.tally.add({"drained": 1})
        print("drained", flush=True)


if __name__ == "__main__":
    sys.exit(main("odd", ModuleSettings, run))
