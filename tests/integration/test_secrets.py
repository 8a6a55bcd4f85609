"""Secrets of a site are nowhere to be read: not in logs, errors, states, answers, bundles or the audit.

Each secret is a canary of its own, put where a site has secrets: files, addresses, and what people write
where they should not. Everything is made to fail that can, since errors are where secrets get out.
"""

from __future__ import annotations

import base64
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

import authority
import needs
from bus_process import ModuleProcess
from events import events
from records import outbound
from remote_site import RemoteSite
from skerry.broker import BrokerProcess, free_port
from skerry.channels import ANSWERS, COMMANDS, OUTBOUND, STATUS
from skerry.messages import Answer, Command, Status
from skerry.mqtt import MqttBus
from skerry.settings import BusSettings
from skerry.testing import eventually

pytestmark = needs.mosquitto

CANARY = b"kanarie"


class Canaries:
    """Makes secrets, and looks for them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        self.made: list[str] = []

    def text(self, name: str) -> str:
        """A secret."""
        self.made.append(f"{CANARY.decode()}-{name}")
        return self.made[-1]

    def file(self, name: str, form: str = "{}") -> str:
        """A file with a secret in it."""
        path = self._folder / name
        path.write_text(form.format(self.text(name)) + "\n")
        return str(path)


def bundles(content: bytes) -> bytes:
    """All that is in a bundle."""
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
        return b"".join(tar.extractfile(entry).read() for entry in tar.getmembers())


def quiet(what: str, content: bytes) -> None:
    """Fail where a secret is in some content, in plain or in base64."""
    for form in (CANARY, *(base64.b64encode(b"x" * n + CANARY)[2 * n : -4] for n in range(3))):
        at = content.find(form)
        assert at < 0, f"{what}: ...{content[max(0, at - 200) : at + 60]!r}"


def cameras(canaries: Canaries) -> list[dict[str, Any]]:
    text = canaries.text
    here = f"127.0.0.1:{free_port()}"
    sources: list[dict[str, Any]] = [
        {"kind": "rtsp", "url": f"rtsp://admin:{text('rtsp-login')}@{here}/1", "timeout_s": 0.5},
        {"kind": "rtsp", "url": f"rtsp://u:{text('at')}@{text('at2')}@{here}/1", "timeout_s": 0.5},
        {"kind": "rtsp", "url": f"rtsp://{here}/user=admin&password={text('path')}&channel=1"},
        {"kind": "mjpeg", "url": f"http://{here}/stream?token={text('query')}", "timeout_s": 0.5},
        {"kind": "mjpeg", "url": f"http://{text('user')}:{text('mjpeg')}@{here}/", "timeout_s": 0.5},
        {
            "kind": "rtsp", "url": f"rtsp://{here}/2", "user": "admin", "timeout_s": 0.5,
            "password_file": canaries.file("rtsp-password"),
        },
        {
            "kind": "mjpeg", "url": f"http://{here}/2", "user": "admin", "timeout_s": 0.5,
            "password_file": canaries.file("mjpeg-password", "{} with spaces/and?signs"),
        },
        {"kind": "synthetic", "width": 160, "height": 120, "fps": 5},
    ]  # fmt: skip
    return [
        {"name": f"c{n}", "source": source, "stall_s": 1, "snapshots": "allowed"}
        for n, source in enumerate(sources)
    ]


def test_a_site_in_trouble_tells_no_secret(shared_broker: BrokerProcess, tmp_path: Path) -> None:
    canaries = Canaries(tmp_path / "secrets")
    port, name = shared_broker.port, f"secrets-{os.getpid()}"
    bus = {"port": port, "user": "skerry", "password_file": canaries.file("bus-password")}
    link = {"user": "far", "password_file": canaries.file("link-password")}
    more = {kind: {"bus": bus, "log_level": "debug"} for kind in ("uplink", "capture")}
    folder = tmp_path / "site"
    with RemoteSite(folder, port, name, cameras=cameras(canaries), link=link, more=more) as site:
        site.ready()
        site.until(lambda: site.logs("capture").count('"module.degraded"') >= 7)
        answers = [
            site.ask("ping"),
            site.ask("ping", password=canaries.text("argument")),
            site.ask("ping", module="capture"),
            site.ask("snapshot", camera="c0"),
            site.ask("snapshot", camera="c7", token=canaries.text("token")),
            site.ask("restart", module=f"rtsp://u:{canaries.text('name')}@h"),
            site.ask("diagnostics", lines=2000),
            site.ask("diagnostics", lines=5),
        ]
        site.until(lambda: "modules" in site.operator.retained("/remote/reported"))
        heard = list(site.operator.heard)
    assert [status for status, _ in answers] == [200, 400, 200, 503, 400, 400, 200, 200]
    written = sorted((folder / "uplink" / "diagnostics").iterdir())
    assert len(written) == 2
    inside = b"".join(bundles(path.read_bytes()) for path in written)
    assert b"camera" in inside
    for n, (_, body) in enumerate(answers):
        quiet(f"answer {n}", json.dumps(body).encode())
    quiet("bundle", inside)
    quiet("bundle in an answer", bundles(base64.b64decode(answers[-1][1]["content"])))
    for log in (folder / "logs").iterdir():
        quiet(log.name, log.read_bytes())
    quiet("audit", (folder / "uplink" / "audit.jsonl").read_bytes())
    for topic, payload in heard:
        if "/remote/requests/" not in topic:  # what the operator himself has written
            quiet(topic, payload)
    seen = {topic.rpartition("/")[0].rpartition("/")[2] for topic, _ in heard}
    assert seen >= {"status", "inventory", "cameras", "metrics", "answers", "remote"}


def links(canaries: Canaries, folder: Path) -> dict[str, dict[str, Any]]:
    port = free_port()
    pem = "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----"
    certificates = authority.make(folder / "certificates")
    return {
        "http": {
            "kind": "http", "url": f"http://127.0.0.1:{port}/in?sig={canaries.text('sig')}", "timeout_s": 1,
            "token_file": canaries.file("token"), "header_files": {"X-Api-Key": canaries.file("api-key")},
        },
        "http-header": {
            "kind": "http", "url": f"http://127.0.0.1:{port}/", "timeout_s": 1,
            "token_file": canaries.file("two-lines", "{0}\n{0}"),
        },
        "mqtt": {
            "kind": "mqtt", "host": "127.0.0.1", "port": port, "user": "u", "timeout_s": 1,
            "password_file": canaries.file("mqtt"),
        },
        "aws": {
            "kind": "aws", "endpoint": "127.0.0.1", "port": port, "timeout_s": 1,
            "tls": {"certificate": str(certificates / "client.pem"), "key": canaries.file("aws-key", pem)},
        },
        "azure": {
            "kind": "azure", "timeout_s": 1,
            "identity": {
                "kind": "connection-string",
                "connection_string_file": canaries.file(
                    "azure", "HostName=127.0.0.1;DeviceId=d;SharedAccessKey={}"
                ),
            },
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    "kind", ["http", "http-header", "mqtt", "aws", pytest.param("azure", marks=needs.azure)]
)
def test_link_that_fails_tells_no_secret(
    shared_broker: BrokerProcess, tmp_path: Path, unique_site: str, kind: str
) -> None:
    canaries = Canaries(tmp_path / "secrets")
    settings = {
        "site": unique_site, "module": "uplink", "state": str(tmp_path / "state"), "log_level": "debug",
        "bus": {"port": shared_broker.port}, "link": links(canaries, tmp_path)[kind], "name": "far",
    }  # fmt: skip
    statuses: list[Status] = []
    answers: list[Answer] = []
    bus = MqttBus(BusSettings(port=shared_broker.port), unique_site, "observer")
    bus.subscribe(STATUS, statuses.append)
    bus.subscribe(ANSWERS, answers.append)
    bus.connect()
    eventually(lambda: bus.connected)
    azure = {"PYTHONPATH": str(needs.AZURE)} if kind == "azure" else {}
    process = ModuleProcess("uplink", settings, tmp_path / "log", environment=azure)
    process.start()

    def in_trouble() -> bool:
        bus.publish(OUTBOUND, outbound(1, events(1, 1)), "far")  # as the buffer repeats it
        return not process.alive or any(status.reason for status in statuses)

    def told() -> bool:
        command = Command(module="uplink", id="1", name="diagnostics", arguments={"lines": 9}, timeout_s=10)
        bus.publish(COMMANDS, command, "uplink")
        return not process.alive or bool(answers)

    try:
        eventually(in_trouble, 30)
        eventually(told, 30)
    finally:
        process.stop()
        bus.close()
    log = (tmp_path / "log").read_bytes()
    assert b"error" in log or b"module.degraded" in log
    quiet("log", log)
    for message in (*statuses, *answers):
        quiet("message", repr(message).encode())
