"""The uplink with AWS's packages in it stays within 60 MB."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

import authority
import needs
from greengrass_ipc import Nucleus
from iot_core import IotCore
from skerry.settings import TlsSettings
from skerry.uplink import settings as given
from tls_broker import TlsBroker

MOST_MB = 60
MODULE = """
import sys
import msgspec
from events import events
from records import outbound
from skerry.bus import MemoryBroker, MemoryBus
from skerry.channels import OUTBOUND, RECEIPTS
from skerry.testing import eventually, running
from skerry.uplink import settings as given
from skerry.uplink.module import run

settings = msgspec.json.decode(sys.argv[1], type=given.UplinkSettings)
broker = MemoryBroker()
bus, receipts = MemoryBus(broker), []
bus.subscribe(RECEIPTS, receipts.append)
with running(run, settings, MemoryBus(broker), "uplink") as host:
    eventually(lambda: host.condition[0] in {"ready", "degraded"})
    for first in range(1, 5001, 100):
        bus.publish(OUTBOUND, outbound(first, events(first, first + 99)), "uplink")
        eventually(lambda: receipts and receipts[-1].upto == first + 99, 30)
    print()
    print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""


def peak_mb(link: Any, folder: Path, environment: dict[str, str] | None = None) -> float:
    """Of a process with the uplink that delivered 5,000 events over a link."""
    settings = given.UplinkSettings(
        site="here", module="uplink", state=str(folder / "state"), link=link,
        sending=given.Sending(limits=given.Limits(preset="none")),
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", MODULE, json.dumps(msgspec.to_builtins(settings))],
        capture_output=True, text=True, timeout=100, check=False,
        env={**os.environ, **(environment or {}), "PYTHONPATH": str(needs.ROOT / "tests")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return max(int(line) for line in done.stdout.splitlines() if line.isdigit()) / 1024


@needs.mosquitto
def test_on_iot_core(tmp_path) -> None:
    keys = authority.make(tmp_path / "keys")
    broker = TlsBroker(tmp_path / "broker", keys)
    broker.start()
    tls = TlsSettings(ca=f"{keys}/ca.pem", certificate=f"{keys}/client.pem", key=f"{keys}/client.key")
    with IotCore(broker.plain):
        link = given.AwsLink(endpoint="localhost", port=broker.port, tls=tls, client_id="gate-3")
        assert peak_mb(link, tmp_path) < MOST_MB
    broker.stop()


def test_on_greengrass(tmp_path) -> None:
    with Nucleus() as nucleus:
        nucleus.configuration = {"desired": {}}
        assert peak_mb(given.GreengrassLink(), tmp_path, nucleus.environment) < MOST_MB
