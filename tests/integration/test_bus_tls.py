"""The bus over TLS, with client certificates and with a password."""

import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

import authority
import needs
from mqtt_raw import receive, remaining_length, text
from samples import metrics
from skerry.broker import free_port, mosquitto
from skerry.channels import METRICS
from skerry.children import end, spawn
from skerry.errors import ConfigError
from skerry.mqtt import MqttBus
from skerry.settings import BusSettings, TlsSettings
from skerry.testing import eventually

pytestmark = needs.mosquitto


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Path:
    """ca.pem, server.pem/.key (for localhost), client.pem/.key, other.pem (another authority)."""
    folder = authority.make(tmp_path_factory.mktemp("keys"))
    authority.lock(folder / "client.key", "secret")
    return folder


@contextmanager
def broker(folder: Path, options: str) -> Iterator[int]:
    port = free_port()
    user = "user root\n" if os.geteuid() == 0 else ""  # else it becomes one who cannot read these files
    (folder / "broker.conf").write_text(f"{user}listener {port} 127.0.0.1\n{options}\n")
    child = spawn([mosquitto() or "mosquitto", "-c", str(folder / "broker.conf")], stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: listens(port))
        yield port
    finally:
        end(child, 2)


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def works(settings: BusSettings) -> None:
    got: list[float] = []
    bus = MqttBus(settings, "s", "welcome")
    bus.subscribe(METRICS, lambda m: got.append(m.uptime_s))
    bus.connect()
    try:
        eventually(lambda: bus.publish(METRICS, metrics(9), "m"), 20)
        eventually(lambda: got == [9])
    finally:
        bus.close()


def reason_of_failure(settings: BusSettings) -> str:
    bus = MqttBus(settings, "s", "stranger")
    with capture_logs() as logs:
        bus.connect()
        eventually(lambda: logs, 20)
        assert not bus.connected
        bus.close()
    assert logs[0]["event"] == "bus.unreachable"
    return str(logs[0]["reason"])


def tls(keys: Path, **options: str) -> TlsSettings:
    return TlsSettings(**{"ca": str(keys / "ca.pem"), **options})


@pytest.fixture(scope="module")
def mutual(keys, tmp_path_factory) -> Iterator[int]:
    files = f"cafile {keys}/ca.pem\ncertfile {keys}/server.pem\nkeyfile {keys}/server.key"
    options = f"{files}\nrequire_certificate true\nallow_anonymous true"
    with broker(tmp_path_factory.mktemp("mutual"), options) as port:
        yield port


def client_of(keys: Path) -> dict[str, str]:
    return {"certificate": str(keys / "client.pem"), "key": str(keys / "client.key")}


def test_client_certificate_opens_the_door(keys, mutual):
    works(BusSettings(host="localhost", port=mutual, tls=tls(keys, **client_of(keys))))


def test_large_messages_pass_whole_through_tls(keys, mutual):
    """Decrypted bytes may wait where no poll reports them."""
    got: list[str] = []
    bus = MqttBus(BusSettings(host="localhost", port=mutual, tls=tls(keys, **client_of(keys))), "s", "large")
    bus.subscribe(METRICS, lambda m: got.append(m.module))
    bus.connect()
    eventually(lambda: bus.connected, 20)
    message = msgspec.structs.replace(metrics(1), counters={f"counter{n}": 1.0 for n in range(5000)})
    for _ in range(30):
        assert bus.publish(METRICS, message, "m")
    eventually(lambda: len(got) == 30, 20)
    bus.close()


def test_messages_that_share_a_tls_record_are_all_read_at_once(keys):
    """Mosquitto writes one message a record, other brokers many. What is decrypted no poll reports."""
    payload = msgspec.json.encode(metrics(3))
    publish = text(b"skerry/s/metrics/m") + payload
    many = (b"\x30" + remaining_length(len(publish)) + publish) * 50

    def serve(server: socket.socket) -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(keys / "server.pem", keys / "server.key")
        with context.wrap_socket(server.accept()[0], server_side=True) as connection:
            receive(connection, 0x10)
            connection.sendall(b"\x20\2\0\0")
            mid = receive(connection, 0x80)[:2]
            connection.sendall(b"\x90\3" + mid + b"\0" + many)
            receive(connection, 0xE0)

    got: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        bus = MqttBus(BusSettings(host="localhost", port=server.getsockname()[1], tls=tls(keys)), "s", "m")
        bus.subscribe(METRICS, got.append)
        bus.connect()
        eventually(lambda: len(got) == 50, 20)
        bus.close()
        thread.join(10)


# paho leaves the socket of a failed handshake to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("host", "options", "reason"),
    [
        ("localhost", {}, "certificate"),
        ("localhost", {"ca": "other.pem"}, "certificate_verify_failed"),
        ("127.0.0.1", {"certificate": "client.pem", "key": "client.key"}, "ip address mismatch"),
    ],
)
def test_stranger_or_impostor_is_not_let_in(keys, mutual, host, options, reason):
    files = {name: str(keys / file) for name, file in options.items()}
    assert reason in reason_of_failure(BusSettings(host=host, port=mutual, tls=tls(keys, **files))).lower()


def test_key_that_needs_a_password_is_an_error_not_a_question(keys):
    locked = tls(keys, certificate=str(keys / "client.pem"), key=str(keys / "locked.key"))
    with pytest.raises(ConfigError, match="unencrypted key"):
        MqttBus(BusSettings(tls=locked), "s", "m")


def test_user_and_password_open_the_door_and_a_wrong_one_does_not(tmp_path):
    users = tmp_path / "users"
    subprocess.run(["mosquitto_passwd", "-c", "-b", users, "gate", "pä55"], check=True, capture_output=True)
    (tmp_path / "good").write_text("pä55\n", encoding="utf-8")
    (tmp_path / "bad").write_text("wrong")
    with broker(tmp_path, f"allow_anonymous false\npassword_file {users}") as port:
        works(BusSettings(port=port, user="gate", password_file=str(tmp_path / "good")))
        assert "refused" in reason_of_failure(
            BusSettings(port=port, user="gate", password_file=str(tmp_path / "bad"))
        )
