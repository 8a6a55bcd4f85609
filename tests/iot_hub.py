"""Azure IoT Hub on loopback: Mosquitto with TLS 1.2 on port 8883, and what answers its topics.

The hub's port is fixed in Microsoft's client, so each hub has an address of its own, 127.77.X.Y. The same
broker is the edgeHub of IoT Edge and the Device Provisioning Service, whose topics do not meet the hub's.

Source: Azure IoT Hub, "Communicate with an IoT hub using the MQTT protocol"; Azure DPS, the same; for the
workload API, azure-iot-device's `edge_hsm`.
"""

import base64
import hashlib
import hmac
import itertools
import json
import os
import re
import signal
import socket
import socketserver
import subprocess
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import paho.mqtt.client as mqtt

from authority import Authority
from skerry.batches import decode
from skerry.broker import answers, free_port, mosquitto
from skerry.children import end, spawn
from skerry.messages import Event
from skerry.testing import eventually

_PORT = 8883
_counter = itertools.count(1)


def free_address() -> str:
    """A loopback address whose port 8883 is free."""
    for n in _counter:
        address = f"127.77.{os.getpid() % 250}.{n % 250 + 1}"
        with socket.socket() as probe:
            try:
                probe.bind((address, _PORT))
            except OSError:
                continue
            return address
    raise AssertionError("no free address")


class Telemetry(NamedTuple):
    """A message as the hub has it."""

    device: str
    properties: dict[str, str]
    payload: bytes


class IotHub:
    """A hub with one twin; every device is that device.

    Args:
        folder: of its files.
        mutual: whether devices show a certificate.
        names: hosts that its certificate is good for, where it is not its own address.
        days: from when and until when that is, from now on, where it is not good.
        refuses: whether it lets nobody in.
        signed_by: an authority that nobody knows.
        websockets: whether it listens on port 443 too.
    """

    def __init__(
        self, folder: Path, *, mutual: bool = False, names: tuple[str, ...] | None = None,
        days: tuple[float, float] | None = None, refuses: bool = False, signed_by: Authority | None = None,
        websockets: bool = False,
    ) -> None:  # fmt: skip
        self.host = free_address()
        self._plain = free_port()
        self.authority = Authority(folder / "keys")
        options = {} if days is None else {"days": days}
        certificate, key = (signed_by or self.authority).issue("server", *(names or (self.host,)), **options)
        self._file = folder / "hub.conf"
        self._log = folder / "hub.log"
        self._mutual = f"require_certificate true\ncafile {self.authority.ca}\n" if mutual else ""
        self._tls = f"certfile {certificate}\nkeyfile {key}\ntls_version tlsv1.2\n"
        self._websockets = websockets
        self.refuses = refuses
        self._child: subprocess.Popen[bytes] | None = None
        self._client: mqtt.Client | None = None
        self._subscribed = False
        self.desired: dict[str, Any] = {"$version": 1}
        self.reported: dict[str, Any] = {"$version": 1}
        self.patches: list[dict[str, Any]] = []
        self.messages: list[Telemetry] = []
        self.responses: dict[str, tuple[int, Any]] = {}
        self.twin_reads = 0
        self.registrations: list[str] = []
        self.assignments: dict[str, tuple[str, str]] = {}
        self.answers_twin = True
        self.patch_status = 204
        self.polls_first = False
        self._rid = itertools.count(1)

    # Its life

    def start(self) -> None:
        """Start, or start again after a kill; what it knows of twins it keeps."""
        user = "user root\n" if os.geteuid() == 0 else ""
        self._file.write_text(
            f"{user}per_listener_settings true\npersistence false\nmax_packet_size 300000\n"
            f"log_dest file {self._log}\nlog_type notice\n"
            f"listener {self._plain} 127.0.0.1\nallow_anonymous true\n"
            f"listener {_PORT} {self.host}\nallow_anonymous {'false' if self.refuses else 'true'}\n"
            f"{self._mutual}{self._tls}{self._web()}"
        )
        self._child = spawn([mosquitto() or "mosquitto", "-c", str(self._file)], stderr=subprocess.DEVNULL)
        eventually(lambda: answers(self._plain), 20)
        self._connect()

    def _web(self) -> str:
        if not self._websockets:
            return ""
        return f"listener 443 {self.host}\nprotocol websockets\nallow_anonymous true\n{self._tls}"

    def kill(self) -> None:
        """As kill -9 does: connections are reset, or closed."""
        assert self._child is not None
        self._child.kill()
        self._child.wait()
        eventually(lambda: not self._subscribed)

    def freeze(self) -> None:
        """Take TCP, and say nothing more."""
        assert self._child is not None
        os.kill(self._child.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._child is not None
        os.kill(self._child.pid, signal.SIGCONT)

    def stop(self) -> None:
        client, self._client = self._client, None
        if self._child is not None and self._child.poll() is None:
            self.thaw()
        if client is not None:
            client.disconnect()
            client.loop_stop()
            if (sock := client.socket()) is not None:
                sock.close()
        if self._child is not None:
            end(self._child, 2)

    # What an operator does

    def set_desired(self, patch: dict[str, Any], *, told: bool = True) -> int:
        """Change the desired state; untold, as when the message about it was lost."""
        version = self.desired["$version"] + 1
        _merge(self.desired, patch)
        self.desired["$version"] = version
        if told:
            payload = json.dumps({**patch, "$version": version})
            self.publish(f"$iothub/twin/PATCH/properties/desired/?$version={version}", payload)
        return version

    def call(self, method: str, payload: Any = None) -> str:
        """Call a direct method; the answer is in `responses` under what this returns."""
        rid = str(next(self._rid))
        self.publish(f"$iothub/methods/POST/{method}/?$rid={rid}", json.dumps(payload))
        return rid

    def answer(self, rid: str) -> tuple[int, Any]:
        eventually(lambda: rid in self.responses)
        return self.responses[rid]

    # What it has

    @property
    def raw(self) -> list[bytes]:
        return [raw for message in list(self.messages) for raw in decode(message.payload)]

    @property
    def arrived(self) -> list[Event]:
        return [msgspec.json.decode(raw, type=Event) for raw in self.raw]

    @property
    def logins(self) -> list[str]:
        """Who logged in, each time, those who look on from our side left out."""
        found = re.findall(r"New client connected from \S+ as (\S+)", self._log.read_text())
        return [name for name in found if not name.startswith("auto-")]

    def connection_string(self, folder: Path, device: str = "gate", **more: str) -> Path:
        """A file that holds one of a device, or, with `ModuleId`, of a module."""
        parts = {"HostName": self.host, "DeviceId": device, "SharedAccessKey": KEY, **more}
        file = folder / "connection-string"
        file.write_text(";".join(f"{name}={value}" for name, value in parts.items()))
        return file

    # Its side of the topics

    def publish(self, topic: str, payload: str | bytes) -> None:
        client = self._client
        if client is not None:  # else the hub is stopping, and what it hears on the way out stays unanswered
            client.publish(topic, payload, qos=1)

    def _connect(self) -> None:
        options: dict[str, Any] = {}
        if hasattr(mqtt, "CallbackAPIVersion"):
            options["callback_api_version"] = mqtt.CallbackAPIVersion.VERSION2
        if (former := self._client) is not None:
            former.loop_stop()
        client = self._client = mqtt.Client(clean_session=True, reconnect_on_failure=False, **options)
        client.max_inflight_messages_set(2000)
        client.on_message = self._on_message
        client.on_connect = lambda c, *_: c.subscribe([(name, 1) for name in _FILTERS])
        client.on_subscribe = lambda *_: setattr(self, "_subscribed", True)
        client.on_disconnect = lambda *_: setattr(self, "_subscribed", False)
        client.connect("127.0.0.1", self._plain)
        client.loop_start()
        eventually(lambda: self._subscribed)

    def _on_message(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        topic, payload = message.topic, bytes(message.payload)
        rid = (re.search(r"\$rid=([^&]*)", topic) or ("", ""))[1]
        if telemetry := re.fullmatch(r"devices/([^/]+(?:/modules/[^/]+)?)/messages/events/(.*)", topic):
            pairs = urllib.parse.parse_qsl(telemetry[2], keep_blank_values=True)
            self.messages.append(Telemetry(telemetry[1].replace("/modules/", "/"), dict(pairs), payload))
        elif topic.startswith("$iothub/twin/GET/"):
            self.twin_reads += 1
            if self.answers_twin:
                twin = json.dumps({"desired": self.desired, "reported": self.reported})
                self.publish(f"$iothub/twin/res/200/?$rid={rid}", twin)
        elif topic.startswith("$iothub/twin/PATCH/properties/reported/"):
            self._report(rid, json.loads(payload))
        elif method := re.match(r"\$iothub/methods/res/(\d+)/", topic):
            self.responses[rid] = int(method[1]), json.loads(payload)
        elif topic.startswith("$dps/registrations/"):
            self._provision(topic, rid, payload)

    def _report(self, rid: str, patch: dict[str, Any]) -> None:
        if self.patch_status < 300:
            self.patches.append(patch)
            _merge(self.reported, patch)
            self.reported["$version"] += 1
        if self.answers_twin:
            version = self.reported["$version"]
            self.publish(f"$iothub/twin/res/{self.patch_status}/?$rid={rid}&$version={version}", b"")

    def _provision(self, topic: str, rid: str, payload: bytes) -> None:
        answer = "$dps/registrations/res"
        if "/PUT/iotdps-register/" in topic:
            registration = json.loads(payload)["registrationId"]
            self.registrations.append(registration)
            if registration not in self.assignments:
                self.publish(f"{answer}/401/?$rid={rid}", b'{"errorCode": 401002, "message": "no"}')
            elif self.polls_first:
                said = json.dumps({"operationId": registration, "status": "assigning"})
                self.publish(f"{answer}/202/?$rid={rid}&retry-after=1", said)
            else:
                self.publish(f"{answer}/200/?$rid={rid}", self._assignment(registration))
        elif asked := re.search(r"operationId=([^&]*)", topic):
            self.publish(f"{answer}/200/?$rid={rid}", self._assignment(asked[1]))

    def _assignment(self, registration: str) -> str:
        hub, device = self.assignments[registration]
        state = {
            "registrationId": registration, "assignedHub": hub, "deviceId": device, "status": "assigned",
            "substatus": "initialAssignment", "createdDateTimeUtc": "2026-03-01T12:00:00.0000000Z",
            "lastUpdatedDateTimeUtc": "2026-03-01T12:00:00.0000000Z", "etag": "x",
        }  # fmt: skip
        return json.dumps({"operationId": registration, "status": "assigned", "registrationState": state})


KEY = base64.b64encode(b"S3cret-of-the-device-that-nobody-sees").decode()
_FILTERS = (
    "devices/#", "$iothub/twin/GET/#", "$iothub/twin/PATCH/properties/reported/#", "$iothub/methods/res/#",
    "$dps/registrations/PUT/#", "$dps/registrations/GET/#",
)  # fmt: skip


def _merge(old: dict[str, Any], patch: dict[str, Any]) -> None:
    for key, value in patch.items():
        if value is None:
            old.pop(key, None)
        elif isinstance(value, dict):
            before = old.get(key)
            old[key] = before if isinstance(before, dict) else {}
            _merge(old[key], value)
        else:
            old[key] = value


class WorkloadApi:
    """What the IoT Edge runtime gives a module: the authorities to trust, and signatures.

    Args:
        folder: of its socket.
        ca: PEM file of the authorities.
    """

    def __init__(self, folder: Path, ca: Path) -> None:
        self.path = folder / "workload.sock"
        self.signed: list[str] = []
        self.trusts = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.trusts += 1
                self._say({"certificate": ca.read_text()} if "/trust-bundle?" in self.path else {})

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                data = base64.b64decode(asked["data"])
                outer.signed.append(data.decode())
                digest = hmac.new(b"of the module", data, hashlib.sha256).digest()
                self._say({"digest": base64.b64encode(digest).decode()})

            def _say(self, document: dict[str, str]) -> None:
                body = json.dumps(document).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def address_string(self) -> str:
                return "unix"

            def log_message(self, *_: object) -> None:
                pass

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True

        self._server = Server(str(self.path), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def environment(self, hub: str, gateway: str) -> dict[str, str]:
        """What the container of a module has in its environment."""
        return {
            "IOTEDGE_IOTHUBHOSTNAME": hub, "IOTEDGE_GATEWAYHOSTNAME": gateway, "IOTEDGE_DEVICEID": "box",
            "IOTEDGE_MODULEID": "uplink", "IOTEDGE_MODULEGENERATIONID": "638",
            "IOTEDGE_AUTHSCHEME": "sasToken", "IOTEDGE_WORKLOADURI": f"unix://{self.path}",
            "IOTEDGE_APIVERSION": "2019-11-05",
        }  # fmt: skip

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)
