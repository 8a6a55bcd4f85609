"""Links against stand-ins of their far ends, beside the bare client or SDK that sends the same payloads.

The stand-ins are those of the tests, in the checkout's folder `tests`: they are no part of what is
installed. Each measurement is a process of its own (`skerry.cli.bench_link_child`), so that its CPU time
and its memory are its own.
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from skerry.broker import HOST, BrokerProcess, mosquitto
from skerry.cli.bench_site import LINK, module
from skerry.cli.bench_uplink import Feeder
from skerry.errors import Unavailable

BATCH_EVENTS = 100
_TESTS = Path(__file__).parents[3] / "tests"
_AZURE = Path(sys.prefix) / "azure"
"""Where `make setup-dev` puts azure-iot-device and the older paho-mqtt that it wants."""
_FASTER = {"mqtt": 20, "http": 2, "greengrass": 3, "azure": 5}
"""A turn is to take about a second or longer."""


class Far(NamedTuple):
    """A far end that is there, and how it is reached."""

    link: dict[str, Any]
    """The link's settings."""
    stop: Callable[[], None]
    start: Callable[[], None]
    environment: Mapping[str, str] = {}
    """Of the process that has the link."""


def run(*, runs: int, count: int, outage_s: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure every link that can run here.

    Args:
        runs: turns of link and bare client; medians are reported.
        count: events in a turn of the slowest link, in batches of `BATCH_EVENTS`; the others get more.
        outage_s: how long the far end is taken away, once a link; 0: not at all.
        say: told what is being done.

    Returns:
        By link: events a second and CPU microseconds an event of the link and of the bare client, the
        ratio of the two rates turn by turn, memory in MB of the uplink's process and of one with the
        bare client alone, and seconds from the far end's return to the first delivery.

    Raises:
        Unavailable: not run from a checkout, or Mosquitto is missing.
    """
    if not (_TESTS / "http_far_end.py").is_file():
        raise Unavailable(
            f"bench link: expected the stand-ins in {_TESTS}, found none (run it in a checkout)"
        )
    if mosquitto() is None:
        raise Unavailable("bench link: expected mosquitto in PATH, found none (install it)")
    sys.path.insert(0, str(_TESTS))
    found: dict[str, Any] = {"runs": runs, "events": count, "batch_events": BATCH_EVENTS}
    for name, world in _WORLDS.items():
        if name == "azure" and not (_AZURE / "azure").is_dir():
            found[name] = {"skipped": f"no azure-iot-device in {_AZURE.name} (make setup-dev)"}
            continue
        say(name)
        with tempfile.TemporaryDirectory(prefix="skerry-bench-") as folder, ExitStack() as stack:
            far = stack.enter_context(world(Path(folder)))
            found[name] = _measure(name, far, runs, count)
            say(f"{name}: the uplink's process")
            found[name] |= _as_module(Path(folder), far, outage_s)
    return found


def _measure(name: str, far: Far, runs: int, count: int) -> dict[str, Any]:
    """Link and bare client, in turns."""
    rows: dict[str, list[dict[str, float]]] = {"link": [], "bare": []}
    for turn in range(runs):
        # Whoever goes first finds the far end cold.
        for mode in ("link", "bare") if turn % 2 else ("bare", "link"):
            rows[mode].append(_child(name, mode, far, count * _FASTER.get(name, 1)))
    figures: dict[str, Any] = {
        "ratio": round(
            statistics.median(
                a["events_per_s"] / b["events_per_s"] for a, b in zip(rows["link"], rows["bare"], strict=True)
            ),
            2,
        )
    }
    for mode, of_mode in rows.items():
        for figure in ("events_per_s", "cpu_us_per_event"):
            figures[f"{mode}_{figure}"] = round(statistics.median(r[figure] for r in of_mode), 2)
    figures["bare_rss_mb"] = round(statistics.median(r["rss_mb"] for r in rows["bare"]), 1)
    return figures


def _child(name: str, mode: str, far: Far, count: int) -> dict[str, float]:
    task = {"kind": name, "mode": mode, "link": far.link, "count": count, "batch": BATCH_EVENTS}
    done = subprocess.run(
        [sys.executable, "-m", "skerry.cli.bench_link_child", json.dumps(task)],
        env={**os.environ, **far.environment}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise Unavailable(f"bench link: {name} {mode}: exit {done.returncode}: {last}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _as_module(folder: Path, far: Far, outage_s: float) -> dict[str, float]:
    """Memory of a real uplink, and how soon it is back after an outage."""
    backoff = {"first_s": 0.5, "last_s": 30.0}
    figures: dict[str, float] = {}
    with BrokerProcess(folder / "bus") as broker, module(
        folder, "uplink", broker.port, environment=far.environment, name=LINK, link=far.link, backoff=backoff,
        sending={"limits": {"preset": "none"}},
    ) as uplink:  # fmt: skip
        feeder = Feeder(broker.port)
        try:
            feeder.wait_ready()
            feeder.offer(20_000)
            feeder.wait_all()
            figures["uplink_rss_mb"] = uplink.peak_mb()
            if outage_s:
                far.stop()
                feeder.offer(100)
                time.sleep(outage_s)
                far.start()
                began = time.monotonic()
                feeder.wait_all(120.0)
                figures["back_after_s"] = round(time.monotonic() - began, 1)
        finally:
            feeder.close()
    return figures


# Far ends


def _stand_in(name: str) -> Any:
    """A module of the checkout's tests."""
    return importlib.import_module(name)


@contextmanager
def _mqtt(folder: Path) -> Iterator[Far]:
    with BrokerProcess(folder / "far") as far:
        link = {"kind": "mqtt", "host": HOST, "port": far.port, "format": "batch"}
        yield Far(link, far.stop, far.start)


@contextmanager
def _http(_folder: Path) -> Iterator[Far]:
    with _stand_in("http_far_end").HttpFarEnd() as far:
        yield Far(
            {"kind": "http", "url": f"http://{HOST}:{far.port}/events", "format": "batch"},
            far.stop,
            far.start,
        )


@contextmanager
def _aws(folder: Path) -> Iterator[Far]:
    (folder / "keys").mkdir()
    keys = _stand_in("authority").make(folder / "keys")
    broker = _stand_in("tls_broker").TlsBroker(folder / "far", keys)
    broker.start()
    try:
        yield Far(
            {
                "kind": "aws", "endpoint": "localhost", "port": broker.port, "shadow": "", "remote_topic": "",
                "tls": {
                    "ca": str(keys / "ca.pem"), "certificate": str(keys / "client.pem"),
                    "key": str(keys / "client.key"),
                },
            },
            broker.kill, broker.start,
        )  # fmt: skip
    finally:
        broker.stop()


@contextmanager
def _greengrass(_folder: Path) -> Iterator[Far]:
    with _stand_in("greengrass_ipc").Nucleus() as nucleus:
        link = {"kind": "greengrass", "desired": "none", "reported": "none", "remote_topic": ""}
        yield Far(link, nucleus.stop, nucleus.start, nucleus.environment)


@contextmanager
def _azure(folder: Path) -> Iterator[Far]:
    hub = _stand_in("iot_hub").IotHub(folder)
    hub.start()
    try:
        identity = {
            "kind": "connection-string", "connection_string_file": str(hub.connection_string(folder)),
        }  # fmt: skip
        link = {"kind": "azure", "identity": identity, "ca": str(hub.authority.ca)}
        path = os.pathsep.join([str(_AZURE), os.environ.get("PYTHONPATH", "")])
        yield Far(link, hub.kill, hub.start, {"PYTHONPATH": path})
    finally:
        hub.stop()


_WORLDS = {"mqtt": _mqtt, "http": _http, "aws": _aws, "greengrass": _greengrass, "azure": _azure}
