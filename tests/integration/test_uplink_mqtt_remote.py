"""The way down of an MQTT link: desired states, reports and commands; and credentials that change."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import paho.mqtt.client as mqtt
import pytest
from structlog.testing import capture_logs

import authority
import needs
from authority import Authority
from mqtt_raw import exactly
from payloads import Payloads
from records import record, records
from skerry.broker import BrokerProcess, free_port, mosquitto
from skerry.children import end, spawn
from skerry.errors import LinkDown
from skerry.settings import TlsSettings
from skerry.testing import eventually
from skerry.uplink import settings as given
from skerry.uplink.downlink import Downlink, Proposal, Request
from skerry.uplink.links.mqtt import MqttLink
from skerry.uplink.links.mqtt_remote import version

pytestmark = needs.mosquitto
WANTED_PAHO = os.environ.get("SKERRY_TEST_PAHO")


class Steered:
    """A link with a way down."""

    def __init__(self, port: int, **options: Any) -> None:
        self.site = f"s{uuid.uuid4().hex[:8]}"
        self.down = Downlink()
        settings = given.MqttLink(**{"host": "127.0.0.1", "port": port, "timeout_s": 5.0, **options})
        self.link = MqttLink(settings, self.site, f"link-{self.site}", threading.Event(), downlink=self.down)

    def topic(self, name: str) -> str:
        return f"skerry/{self.site}/remote/{name}"

    def open(self) -> "Steered":
        """Connected, and told by the broker that it is subscribed."""
        self.link.open()
        eventually(lambda: not self.link._asking)
        return self

    def proposal(self) -> Proposal:
        """What is desired, once something is."""
        found: list[Proposal] = []
        eventually(lambda: (got := self.down.take(0.1)[0]) and found.append(got) is None)
        return found[-1]

    def requests(self, count: int) -> list[Request]:
        """That many commands."""
        found: list[Request] = []
        eventually(lambda: found.extend(self.down.take(0.1)[1]) or len(found) >= count)
        return found


@contextmanager
def operator(port: int, topic: str = "none/#") -> Iterator[tuple[Callable[..., None], Payloads]]:
    """Somebody at the broker, who sends and listens."""
    far = Payloads(port, topic)
    far.start()

    def send(topic: str, payload: bytes, *, retain: bool = False) -> None:
        assert far._client is not None
        assert far._client.publish(topic, payload, qos=1, retain=retain).rc == mqtt.MQTT_ERR_SUCCESS

    try:
        yield send, far
    finally:
        far.stop()


@pytest.fixture
def steered(shared_broker: BrokerProcess) -> Iterator[Steered]:
    steered = Steered(shared_broker.port).open()
    yield steered
    steered.link.close()


def test_a_desired_state_comes_down_live_and_to_who_connects_later(shared_broker: BrokerProcess) -> None:
    steered = Steered(shared_broker.port)
    with operator(shared_broker.port) as (send, _):
        send(steered.topic("desired"), b'{"version": 7, "modules": {}}', retain=True)
        steered.open()
        assert steered.proposal() == Proposal("topic", "7", {"version": 7, "modules": {}})
        send(steered.topic("desired"), b'{"version": "b", "modules": {"capture": {}}}', retain=True)
        assert steered.proposal() == Proposal("topic", "b", {"version": "b", "modules": {"capture": {}}})
    steered.link.close()


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"version": 7}, "7"),
        ({"version": "v1"}, "v1"),
        ({"version": True}, "digest"),
        ({"version": ""}, "digest"),
        ({"version": "x" * 65}, "digest"),
        ({"version": {"a": 1}}, "digest"),
        ({}, "digest"),
    ],
)
def test_a_version_is_the_documents_own_or_a_digest(document: dict[str, Any], expected: str) -> None:
    found = version(document, b"payload")
    assert found == ("239f59ed55e7" if expected == "digest" else expected)


def test_a_flood_of_desired_states_ends_with_the_newest(steered: Steered) -> None:
    with operator(steered.link._settings.port) as (send, _):
        for n in range(1, 1001):
            send(steered.topic("desired"), b'{"version": %d}' % n, retain=True)
        steered.link.send(records(1, 50))
        seen: list[str] = []
        eventually(lambda: seen.append(steered.proposal().version) or seen[-1] == "1000")
    assert [int(one) for one in seen] == sorted(int(one) for one in seen)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"{", "expected JSON"),
        (b"[1]", "expected an object"),
        (b"[" * 50_000, "expected JSON"),
        (b'{"a": "%s"}' % (b"x" * 70_000), "expected at most 65536 bytes"),
        (b'"\xff"', "expected JSON"),
    ],
)
def test_a_desired_state_that_is_none_is_said_to_be_and_the_next_is_taken(
    steered: Steered, payload: bytes, reason: str
) -> None:
    with operator(steered.link._settings.port) as (send, _):
        send(steered.topic("desired"), payload)
        eventually(lambda: reason in steered.link.trouble)
        assert steered.link.trouble.startswith(steered.topic("desired"))
        send(steered.topic("desired"), b'{"version": 1}')
        assert steered.proposal().version == "1"
        eventually(lambda: steered.link.trouble == "")
    steered.link.send([record(1)])


def test_a_desired_state_that_is_taken_away_says_nothing(steered: Steered) -> None:
    with operator(steered.link._settings.port) as (send, _):
        send(steered.topic("desired"), b"")
        send(steered.topic("requests/ping"), b"")
        assert steered.down.take(5.0)[0] is None
    assert steered.link.trouble == ""


def test_a_report_is_retained_and_takes_the_place_of_the_one_before(steered: Steered) -> None:
    steered.link.report({"version": "1", "gone": True}, 5.0)
    steered.link.report({"version": "2"}, 5.0)
    with operator(steered.link._settings.port, steered.topic("reported")) as (_, far):
        eventually(lambda: far.got)
    assert [msgspec.json.decode(raw) for raw in far.got] == [{"version": "2"}]


def test_a_report_that_is_not_confirmed_is_an_error(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path, kind="mosquitto") as frozen:
        steered = Steered(frozen.port).open()
        os.kill(frozen.pid, signal.SIGSTOP)
        try:
            with pytest.raises(LinkDown, match=r"did not confirm skerry/.*/reported within 0\.2 s"):
                steered.link.report({}, 0.2)
            threading.Timer(0.2, steered.link.close).start()
            with pytest.raises(LinkDown, match="lost before it confirmed"):
                steered.link.report({}, 30.0)
        finally:
            os.kill(frozen.pid, signal.SIGCONT)
        with pytest.raises(LinkDown):
            steered.link.report({}, 1.0)


def test_a_report_whose_confirmation_is_faster_than_we_are_counts(
    steered: Steered, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = steered.link._publish

    def slowly(*arguments: Any, **options: Any) -> int:
        mid = publish(*arguments, **options)
        eventually(lambda: mid in steered.link._early)
        return mid

    monkeypatch.setattr(steered.link, "_publish", slowly)
    steered.link.report({}, 2.0)
    assert not steered.link._early


def test_reports_and_batches_are_confirmed_side_by_side(steered: Steered) -> None:
    """Each message has its own number, whichever thread sends it."""
    failed: list[Exception] = []

    def report() -> None:
        for n in range(200):
            try:
                steered.link.report({"n": n}, 10.0)
            except LinkDown as error:
                failed.append(error)

    thread = threading.Thread(target=report)
    thread.start()
    for n in range(0, 2000, 20):
        steered.link.send(records(n + 1, n + 20))
    thread.join()
    assert failed == []
    assert not steered.link._aside
    assert not steered.link._early


def test_a_command_is_answered_and_the_answer_is_not_retained(steered: Steered) -> None:
    with operator(steered.link._settings.port, steered.topic("responses")) as (send, far):
        send(steered.topic("requests/ping"), b'{"id": "a1", "arguments": {"n": 5}}')
        (request,) = steered.requests(1)
        assert (request.name, msgspec.json.decode(request.body)) == ("ping", {"n": 5})
        request.reply(200, b'{"pong": true}')
        eventually(lambda: far.got)
        assert msgspec.json.decode(far.got[0]) == {
            "id": "a1", "name": "ping", "status": 200, "body": {"pong": True},
        }  # fmt: skip
    with operator(steered.link._settings.port, steered.topic("responses")) as (_, later):
        steered.link.send([record(1)])
        assert later.got == []


def test_a_retained_command_is_ignored(shared_broker: BrokerProcess) -> None:
    """It would be given again with each connection, for ever."""
    steered = Steered(shared_broker.port)
    with operator(shared_broker.port, steered.topic("requests/restart")) as (send, far):
        send(steered.topic("requests/restart"), b'{"id": "1"}', retain=True)
        eventually(lambda: far.got)
        with capture_logs() as logs:
            steered.open()
            send(steered.topic("requests/ping"), b'{"id": "2"}')
            (request,) = steered.requests(1)
        send(steered.topic("requests/restart"), b"", retain=True)
    assert request.name == "ping"
    assert {"command.ignored"} <= {entry["event"] for entry in logs}
    steered.link.close()


@pytest.mark.parametrize(
    ("payload", "status"),
    [
        (b'{"id": 5}', 400),
        (b'{"id": "%s"}' % (b"x" * 200), 400),
        (b"{", 400),
        (b"[]", 400),
        (b'{"id": "1", "arguments": "%s"}' % (b"x" * 70_000), 413),
    ],
)
def test_a_command_that_is_none_is_answered_all_the_same(
    steered: Steered, payload: bytes, status: int
) -> None:
    with operator(steered.link._settings.port, steered.topic("responses")) as (send, far):
        send(steered.topic("requests/ping"), payload)
        eventually(lambda: far.got)
    answer = msgspec.json.decode(far.got[0])
    assert (answer["status"], answer["name"], "error" in answer["body"]) == (status, "ping", True)
    steered.link.send([record(1)])


def test_a_storm_of_commands_is_bounded_and_delivery_goes_on(steered: Steered) -> None:
    """Those that are too many are answered at once."""
    with operator(steered.link._settings.port, steered.topic("responses")) as (send, far):
        for n in range(1000):
            send(steered.topic("requests/ping"), b'{"id": "%d"}' % n)
        steered.link.send(records(1, 100))
        eventually(lambda: far.got)
        assert {msgspec.json.decode(raw)["status"] for raw in far.got} == {429}
        held = steered.down.take(0.0)[1]
        assert 0 < len(held) <= 32
        for request in held:
            request.reply(200, b"{}")
        eventually(lambda: sum(msgspec.json.decode(raw)["status"] == 200 for raw in far.got) == len(held))


def test_an_answer_outlives_the_connection_that_brought_its_command(steered: Steered) -> None:
    """It goes over the next one; while there is none, it is given up."""
    with operator(steered.link._settings.port, steered.topic("responses")) as (send, far):
        for n in (1, 2):
            send(steered.topic("requests/ping"), b'{"id": "%d"}' % n)
        first, second = steered.requests(2)
        steered.link.close()
        with capture_logs() as logs:
            first.reply(200, b"{}")
        assert [entry["event"] for entry in logs] == ["answer.dropped"]
        steered.open()
        second.reply(200, b"{}")
        eventually(lambda: far.got)
    assert msgspec.json.decode(far.got[0])["id"] == "2"


def test_nothing_is_subscribed_to_where_nothing_is_wanted(shared_broker: BrokerProcess) -> None:
    steered = Steered(shared_broker.port, remote_topic="")
    assert not steered.link.steered
    steered.link.open()
    assert not steered.link._asking
    steered.link.report({}, 0.1)
    steered.link.send([record(1)])
    steered.link.close()


def test_a_lost_connection_is_noticed_with_nothing_to_send(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path, kind="mosquitto") as broker:
        steered = Steered(broker.port).open()
        assert not steered.link.finish(0)
        os.kill(broker.pid, signal.SIGKILL)
        with pytest.raises(LinkDown, match="connection lost"):
            eventually(lambda: steered.link.finish(0))
        eventually(lambda: broker.poll() is not None)
        broker.start()
        steered.open()
        with operator(broker.port) as (send, _):
            send(steered.topic("desired"), b'{"version": 3}')
            assert steered.proposal().version == "3"
        steered.link.close()


class Refuser(threading.Thread):
    """A broker that refuses a subscription, or hangs up over it, and confirms what is published."""

    def __init__(self, *, hangs_up: bool) -> None:
        super().__init__(daemon=True)
        self._hangs_up = hangs_up
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.subscriptions = 0

    def run(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            with peer, contextlib.suppress(ConnectionError):
                self._serve(peer)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.join()

    def _serve(self, peer: socket.socket) -> None:
        while True:
            kind, length, shift = exactly(peer, 1)[0] >> 4, 0, 0
            while (byte := exactly(peer, 1)[0]) & 0x80:
                length, shift = length | (byte & 0x7F) << shift, shift + 7
            body = exactly(peer, length | byte << shift)
            if kind == 1:
                peer.sendall(b"\x20\x02\x00\x00")
            elif kind == 3:
                end = 2 + int.from_bytes(body[:2], "big")
                peer.sendall(b"\x40\x02" + body[end : end + 2])
            elif kind == 8:
                self.subscriptions += 1
                if self._hangs_up:
                    return
                peer.sendall(b"\x90\x04" + body[:2] + b"\x80\x80")


@contextmanager
def refuser(*, hangs_up: bool) -> Iterator[Refuser]:
    broker = Refuser(hangs_up=hangs_up)
    broker.start()
    try:
        yield broker
    finally:
        broker.close()


def open_and_wait(link: MqttLink) -> None:
    link.open()
    eventually(lambda: link.finish(0))


def test_a_broker_that_hangs_up_over_a_subscription_still_gets_events() -> None:
    with refuser(hangs_up=True) as broker:
        steered = Steered(broker.port)
        for _ in range(2):
            with pytest.raises(LinkDown, match="connection lost"):
                open_and_wait(steered.link)
        steered.link.open()
        steered.link.send(records(1, 20))
        assert broker.subscriptions == 2
        assert "hangs up over the subscription" in steered.link.trouble
        steered.link.close()


def test_a_subscription_that_is_refused_is_said_to_be() -> None:
    with refuser(hangs_up=False) as broker:
        steered = Steered(broker.port)
        steered.link.open()
        eventually(lambda: "refuses the subscription (allow it)" in steered.link.trouble)
        steered.link.send([record(1)])
        steered.link.close()


# Credentials


@contextmanager
def at_broker(folder: Path, options: str) -> Iterator[int]:
    port = free_port()
    user = "user root\n" if os.geteuid() == 0 else ""
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


def put(source: Path, target: Path) -> None:
    """As a rotation does it: another file of the same name."""
    draft = target.with_suffix(".draft")
    shutil.copy(source, draft)
    draft.rename(target)


PAHO_FAILS = (
    "ignore::pytest.PytestUnraisableExceptionWarning",  # it leaves a socket to the garbage collector
    "ignore::pytest.PytestUnhandledThreadExceptionWarning",  # the thread of 1.6.1 ends
)
"""What becomes of paho when TLS fails."""


@pytest.mark.filterwarnings(*PAHO_FAILS)
def test_a_certificate_is_exchanged_without_a_restart(tmp_path: Path) -> None:
    old, new = Authority(tmp_path / "old"), Authority(tmp_path / "new")
    server, server_key = old.issue("server", "localhost")
    both = tmp_path / "both.pem"  # the broker knows the authority of tomorrow already
    both.write_bytes(old.ca.read_bytes() + new.ca.read_bytes())
    files = f"cafile {both}\ncertfile {server}\nkeyfile {server_key}\nrequire_certificate true"
    certificate, key = old.issue("client")
    tls = TlsSettings(ca=str(old.ca), certificate=str(certificate), key=str(key))
    with at_broker(tmp_path, f"allow_anonymous true\n{files}") as port:
        steered = Steered(port, host="localhost", tls=tls).open()
        steered.link.send(records(1, 3))
        first = steered.link._client
        for source, target in zip(new.issue("client"), (certificate, key), strict=True):
            put(source, target)
            time.sleep(0.01)  # between the two halves of an exchange

        with pytest.raises(LinkDown, match="connecting anew with the credentials that were exchanged"):
            eventually(lambda: steered.link.finish(0))
        steered.open()
        steered.link.send(records(4, 6))
        assert steered.link._client is not first
        assert not steered.link.finish(0)  # and stays
        steered.link.close()


def test_what_is_under_way_is_confirmed_before_credentials_are_exchanged(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("one\n")
    with BrokerProcess(tmp_path / "broker", kind="mosquitto") as broker:
        link = Steered(broker.port, user="edge", password_file=str(password), timeout_s=20.0).open().link
        os.kill(broker.pid, signal.SIGSTOP)
        try:
            link.start(records(1, 3))
            (tmp_path / "password.new").write_text("two\n")
            (tmp_path / "password.new").rename(password)
            eventually(lambda: link.finish(0.0) or link._changed_at is not None)
            assert not link.finish(0.1)
        finally:
            os.kill(broker.pid, signal.SIGCONT)
        eventually(lambda: link.finish(0.1))
        with pytest.raises(LinkDown, match="exchanged"):
            link.start(records(4, 6))
        link.open()
        link.send(records(4, 6))
        link.close()


def test_a_password_that_is_exchanged_is_used(tmp_path: Path) -> None:
    passwords, secret = tmp_path / "passwords", tmp_path / "secret"
    passwords.write_text("edge:right\n")
    tool = shutil.which("mosquitto_passwd", path="/usr/bin:/usr/local/bin:/opt/homebrew/bin")
    if tool is None:
        assert not needs.FORBIDDEN, "mosquitto_passwd is missing"
        pytest.skip("needs mosquitto_passwd (apt-get install mosquitto)")
    subprocess.run([tool, "-U", str(passwords)], check=True, capture_output=True)
    secret.write_text("wr0ng-s3cret\n")
    with at_broker(tmp_path, f"allow_anonymous false\npassword_file {passwords}") as port:
        link = Steered(port, user="edge", password_file=str(secret)).link
        with pytest.raises(LinkDown, match=r"refused: .*check link.user and link.password_file") as refused:
            link.open()
        assert "s3cret" not in str(refused.value)
        with capture_logs() as logs, pytest.raises(LinkDown):
            link.open()
        assert [entry["event"] for entry in logs] == ["credentials.read"]  # changed or not: who knows
        with capture_logs() as logs, pytest.raises(LinkDown):
            Steered(free_port(), user="edge", password_file=str(secret)).link.open()
        assert logs == []
        secret.write_text("right\n")
        link.open()
        link.send(records(1, 3))
        link.close()


@pytest.mark.filterwarnings(*PAHO_FAILS)
@pytest.mark.parametrize(
    ("ca", "certificate", "host", "reason"),
    [
        ("other", "client", "localhost", r"the far end's certificate: .*\(check tls\.ca .*other\.pem"),
        ("ca", "client-other", "localhost", r"refuses tls\.certificate .*client-other\.pem"),
        ("ca", "client-old", "localhost", r"refuses tls\.certificate .*client-old\.pem: .*expired"),
        ("ca", "client", "127.0.0.1", r"mismatch.* \(is 127\.0\.0\.1 the right endpoint\?\)"),
    ],
)
def test_refused_credentials_name_the_file(
    tmp_path: Path, ca: str, certificate: str, host: str, reason: str
) -> None:
    keys = authority.make(tmp_path / "keys")
    files = f"cafile {keys}/ca.pem\ncertfile {keys}/server.pem\nkeyfile {keys}/server.key"
    tls = TlsSettings(
        ca=str(keys / f"{ca}.pem"), certificate=str(keys / f"{certificate}.pem"), key=str(keys / "client.key")
    )
    with at_broker(tmp_path, f"allow_anonymous true\n{files}\nrequire_certificate true") as port:
        link = Steered(port, host=host, tls=tls).link
        with pytest.raises(LinkDown, match=reason):
            link.open()


@pytest.mark.filterwarnings(*PAHO_FAILS)
def test_an_expired_far_end_is_refused(tmp_path: Path) -> None:
    keys = authority.make(tmp_path / "keys")
    files = f"cafile {keys}/ca.pem\ncertfile {keys}/server-old.pem\nkeyfile {keys}/server.key"
    with at_broker(tmp_path, f"allow_anonymous true\n{files}") as port:
        link = Steered(port, host="localhost", tls=TlsSettings(ca=str(keys / "ca.pem"))).link
        with pytest.raises(LinkDown, match="the far end's certificate: certificate has expired"):
            link.open()


@pytest.mark.skipif(WANTED_PAHO is not None, reason="this is that run")
@needs.azure
def test_all_of_it_holds_on_paho_1_6_1() -> None:
    files = [__file__, str(Path(__file__).with_name("test_uplink_mqtt_states.py"))]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *files, "-q", "-p", "no:cacheprovider"],
        env={**os.environ, "PYTHONPATH": str(needs.AZURE), "SKERRY_TEST_PAHO": "1.6.1"},
        cwd=needs.ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
