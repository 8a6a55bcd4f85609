"""One measurement of `skerry bench link`: a link, or its bare client, sends batches and is timed."""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from skerry.batches import CONTENT_TYPE, encode
from skerry.cli.bench_site import LINK, SITE, Events
from skerry.service import rss_mb
from skerry.uplink.links import make
from skerry.uplink.record import read_all
from skerry.uplink.settings import UplinkSettings

Send = Callable[[bytes], Callable[[], object]]
"""Sends a payload; what it returns waits for the confirmation."""
_TOPIC = "skerry/bench/far/event"


def main(task: dict[str, Any]) -> dict[str, float]:
    """Send, and say how long it took and what it cost."""
    made = Events()
    size, count = task["batch"], task["count"]
    batches = [[made.encoded(n + k) for k in range(size)] for n in range(1, count, size)]
    if task["mode"] == "link":
        began, cpu = _through_link(task["link"], batches)
    else:
        payloads = [encode(batch) for batch in batches]
        began, cpu = _bare(task["kind"], task["link"], payloads)
    took_s, cpu_s = time.monotonic() - began, time.process_time() - cpu
    return {
        "events_per_s": count / took_s,
        "cpu_us_per_event": cpu_s / count * 1e6,
        "rss_mb": rss_mb(),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _through_link(link: dict[str, Any], batches: list[list[bytes]]) -> tuple[float, float]:
    """When it began, on both clocks."""
    with tempfile.TemporaryDirectory(prefix="skerry-bench-") as state:
        given = {"site": SITE, "module": "uplink", "name": LINK, "state": state, "link": link}
        settings = msgspec.convert({**given, "sending": {"limits": {"preset": "none"}}}, UplinkSettings)
        far = make(settings, threading.Event())
        far.open()
        records = [list(read_all(batch)) for batch in batches]
        began, cpu = time.monotonic(), time.process_time()
        under_way = 0
        for batch in records:
            far.start(batch)  # type: ignore[arg-type]  # ours are no flaws
            under_way += 1
            while under_way >= far.window:
                under_way -= far.finish()
        while under_way:
            under_way -= far.finish()
        far.close()
        return began, cpu


def _bare(kind: str, link: dict[str, Any], payloads: list[bytes]) -> tuple[float, float]:
    """The same payloads by the client alone, as many under way as the link allows itself."""
    makers: dict[str, tuple[int, Callable[[dict[str, Any]], Send]]] = {
        "mqtt": (64, _paho),
        "http": (1, _http),
        "aws": (1, _aws),
        "greengrass": (1, _greengrass),
        "azure": (32, _azure),
    }
    window, maker = makers[kind]
    send = maker(link)
    under_way: deque[Callable[[], object]] = deque()
    began, cpu = time.monotonic(), time.process_time()
    for payload in payloads:
        under_way.append(send(payload))
        if len(under_way) >= window:
            under_way.popleft()()
    while under_way:
        under_way.popleft()()
    return began, cpu


def _paho(link: dict[str, Any]) -> Send:
    mqtt: Any = importlib.import_module("paho.mqtt.client")
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    client.max_inflight_messages_set(64)
    client.connect(link["host"], link["port"])
    client.loop_start()

    def send(payload: bytes) -> Callable[[], object]:
        wait: Callable[[], object] = client.publish(_TOPIC, payload, qos=1).wait_for_publish
        return wait

    return send


def _http(link: dict[str, Any]) -> Send:
    from http.client import HTTPConnection  # noqa: PLC0415 - only the one that is measured

    url = urlsplit(link["url"])
    connection = HTTPConnection(str(url.hostname), url.port)

    def send(payload: bytes) -> Callable[[], object]:
        connection.request("POST", url.path, payload, {"Content-Type": CONTENT_TYPE})
        return lambda: connection.getresponse().read()

    return send


def _aws(link: dict[str, Any]) -> Send:
    from awscrt import mqtt5  # noqa: PLC0415 - only the one that is measured
    from awsiot import mqtt5_client_builder  # noqa: PLC0415

    up = threading.Event()
    tls = link["tls"]
    client = mqtt5_client_builder.mtls_from_path(
        tls["certificate"], tls["key"], ca_filepath=tls["ca"], endpoint=link["endpoint"], port=link["port"],
        client_id="bare", on_lifecycle_connection_success=lambda _: up.set(),
        # Else it keeps to IoT Core's rates, which the link was told not to.
        extended_validation_and_flow_control_options=mqtt5.ExtendedValidationAndFlowControlOptions.NONE,
    )  # fmt: skip
    client.start()
    if not up.wait(20):
        raise TimeoutError("the bare client did not connect")

    def send(payload: bytes) -> Callable[[], object]:
        packet = mqtt5.PublishPacket(topic=_TOPIC, payload=payload, qos=mqtt5.QoS.AT_LEAST_ONCE)
        future = client.publish(packet)
        return lambda: future.result(20)

    return send


def _greengrass(_link: dict[str, Any]) -> Send:
    from awsiot.greengrasscoreipc.clientv2 import (  # noqa: PLC0415 - only the one that is measured
        GreengrassCoreIPCClientV2,
    )

    client = GreengrassCoreIPCClientV2()

    def send(payload: bytes) -> Callable[[], object]:
        future = client.publish_to_iot_core_async(topic_name=_TOPIC, qos="1", payload=payload)
        return lambda: future.result(20)

    return send


def _azure(link: dict[str, Any]) -> Send:
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - only the one that is measured

    from azure.iot.device import IoTHubDeviceClient, Message  # noqa: PLC0415

    said = Path(link["identity"]["connection_string_file"]).read_text(encoding="utf-8").strip()
    authorities = Path(link["ca"]).read_text(encoding="utf-8")
    client = IoTHubDeviceClient.create_from_connection_string(said, server_verification_cert=authorities)
    client.connect()
    # Its calls wait for the confirmation, each on the thread that makes it.
    pool = ThreadPoolExecutor(8)

    def send(payload: bytes) -> Callable[[], object]:
        return pool.submit(client.send_message, Message(payload)).result

    return send


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))), flush=True)
    os._exit(0)  # clients leave threads that the interpreter would wait for
