"""The MQTT link's doors and limits: TLS, certificates, passwords, sizes, a far end that does not answer."""

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

import authority
import needs
from events import event
from records import of, record, records
from skerry.broker import BrokerProcess, free_port, mosquitto
from skerry.channels import Channel
from skerry.children import end, spawn
from skerry.errors import ConfigError, LinkDown, Rejected
from skerry.messages import Event
from skerry.mqtt import MqttBus
from skerry.settings import BusSettings, TlsSettings
from skerry.testing import eventually
from skerry.uplink import settings as given
from skerry.uplink.limits import Bounds
from skerry.uplink.links.mqtt import MqttLink

pytestmark = needs.mosquitto


def link_to(**options: object) -> MqttLink:
    settings = given.MqttLink(**{"host": "localhost", "timeout_s": 2.0, **options})  # type: ignore[arg-type]
    return MqttLink(settings, "here", "link", threading.Event())


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Path:
    """An authority, a certificate for localhost and one for a client, and another authority."""
    return authority.make(tmp_path_factory.mktemp("keys"))


@contextmanager
def broker(folder: Path, options: str) -> Iterator[int]:
    port = free_port()
    folder.mkdir(exist_ok=True)
    me = pwd.getpwuid(os.geteuid()).pw_name  # else it becomes one who may not read our files
    (folder / "broker.conf").write_text(f"user {me}\nlistener {port} 127.0.0.1\n{options}\n")
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


@pytest.fixture(scope="module")
def mutual(keys, tmp_path_factory) -> Iterator[int]:
    files = f"cafile {keys}/ca.pem\ncertfile {keys}/server.pem\nkeyfile {keys}/server.key"
    with broker(
        tmp_path_factory.mktemp("tls"), f"allow_anonymous true\n{files}\nrequire_certificate true"
    ) as port:
        yield port


def tls(keys: Path, **names: str) -> TlsSettings:
    return TlsSettings(**{name: str(keys / file) for name, file in {"ca": "ca.pem", **names}.items()})


def test_a_client_certificate_opens_the_door(keys: Path, mutual: int) -> None:
    link = link_to(port=mutual, tls=tls(keys, certificate="client.pem", key="client.key"))
    link.open()
    link.send(records(1, 500))
    link.close()


# paho leaves the socket of a failed handshake to the garbage collector, and the thread of 1.6.1 ends of it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    ("host", "names"),
    [
        ("localhost", {}),
        ("localhost", {"ca": "other.pem", "certificate": "client.pem", "key": "client.key"}),
        ("127.0.0.1", {"certificate": "client.pem", "key": "client.key"}),
    ],
)
def test_strangers_and_impostors_are_link_down(
    keys: Path, mutual: int, host: str, names: dict[str, str]
) -> None:
    link = link_to(host=host, port=mutual, tls=tls(keys, **names))
    with pytest.raises(LinkDown):
        link.open()


def test_missing_files_are_configuration_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tls\.ca: .*missing"):
        link_to(tls=TlsSettings(ca=str(tmp_path / "missing")))
    with pytest.raises(ConfigError, match=r"link\.password_file: .*missing"):
        link_to(user="u", password_file=str(tmp_path / "missing"))


def test_a_password_opens_the_door_and_a_wrong_one_does_not(tmp_path: Path) -> None:
    passwords = tmp_path / "passwords"
    passwords.write_text("edge:right\n")
    tool = shutil.which("mosquitto_passwd", path="/usr/bin:/usr/local/bin:/opt/homebrew/bin")
    if tool is None:
        assert not needs.FORBIDDEN, "mosquitto_passwd is missing"
        pytest.skip("needs mosquitto_passwd (apt-get install mosquitto)")
    subprocess.run([tool, "-U", str(passwords)], check=True, capture_output=True)
    (tmp_path / "right").write_text("right\n")
    (tmp_path / "wrong").write_text("wrong\n")
    with broker(tmp_path / "broker", f"allow_anonymous false\npassword_file {passwords}") as port:
        link = link_to(port=port, user="edge", password_file=str(tmp_path / "right"))
        link.open()
        link.send(records(1, 3))
        link.close()
        with pytest.raises(LinkDown, match=r"refused: .*[Nn]ot authori[sz]ed"):
            link_to(port=port, user="edge", password_file=str(tmp_path / "wrong")).open()


def test_the_topic_is_made_from_site_lane_and_type(shared_broker: BrokerProcess) -> None:
    far = Channel(
        name="far",
        address="plant/{site}/alarm/{key}",
        payload=Event,
        qos=1,
        retain=False,
        doc="Of tests only.",
    )
    got: list[Event] = []
    bus = MqttBus(BusSettings(port=shared_broker.port), "here", "topic-listener")
    bus.subscribe(far, got.append, "io.skerry.count")
    bus.connect()
    eventually(lambda: bus.connected)
    link = link_to(port=shared_broker.port, topic="plant/{site}/{lane}/{type}")
    link.open()
    link.send([record(1, lane="alarm"), record(2)])
    eventually(lambda: [e.seq for e in got] == [1])
    link.close()
    bus.close()


def test_an_event_too_large_for_the_far_end_is_rejected_here(shared_broker: BrokerProcess) -> None:
    """Mosquitto would close the connection over it, again and again."""
    link = link_to(port=shared_broker.port, max_payload_bytes=2000)
    link.open()
    with pytest.raises(Rejected, match="expected at most 2000 bytes, got"):
        link.send([record(1), record(2, size=3000)])
    link.send([record(1)])
    link.close()


def test_the_narrower_of_two_limits_of_size_counts(shared_broker: BrokerProcess) -> None:
    settings = given.MqttLink(host="127.0.0.1", port=shared_broker.port)
    link = MqttLink(settings, "here", "narrow", threading.Event(), Bounds(message_bytes=1500))
    link.open()
    with pytest.raises(Rejected, match="expected at most 1500 bytes, got"):
        link.send([record(1, size=2000)])
    link.close()


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_a_batch_within_its_bound_is_never_refused_for_its_size(
    shared_broker: BrokerProcess, compression: str
) -> None:
    """Also where nothing can be made smaller."""
    link = link_to(
        port=shared_broker.port, format="batch", compression=compression, max_payload_bytes=64 * 1024
    )
    link.open()
    noise = random.Random(1)
    batch, room, seq = [], link.max_bytes, 0
    while True:
        seq += 1
        item = msgspec.structs.replace(
            event(seq), data={"noise": noise.randbytes(noise.randrange(2000)).hex()}
        )
        room -= len(of(item).raw) + 1
        if room < 0:
            break
        batch.append(of(item))
    assert len(batch) > 10
    link.send(batch)
    link.close()


def test_later_batches_go_out_before_the_first_is_confirmed(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path, kind="mosquitto") as frozen:
        link = link_to(port=frozen.port, timeout_s=20.0)
        link.open()
        os.kill(frozen.pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            for n in range(8):
                link.start(records(n * 10 + 1, n * 10 + 10))
            assert not link.finish(0.2)
            assert time.monotonic() - began < 5
        finally:
            os.kill(frozen.pid, signal.SIGCONT)
        for _ in range(8):
            eventually(lambda: link.finish(0.1))
        link.close()


def test_a_slow_far_end_is_not_down_while_it_confirms_something(tmp_path: Path) -> None:
    """The time given is that without any confirmation, not that of all that is on its way."""
    with BrokerProcess(tmp_path, kind="mosquitto") as slow:
        link = link_to(port=slow.port, timeout_s=1.0)
        link.open()
        try:
            for n in range(5):
                os.kill(slow.pid, signal.SIGSTOP)
                link.start(records(n + 1, n + 1))  # before the one before is finished: there is always one
                if n:
                    assert link.finish()
                assert not link.finish(0.4)
                os.kill(slow.pid, signal.SIGCONT)
                eventually(lambda: not link._under_way[0])
            assert link.finish()
        finally:
            os.kill(slow.pid, signal.SIGCONT)
        link.close()


def test_nothing_of_an_earlier_connection_is_waited_for(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path, kind="mosquitto") as frozen:
        link = link_to(port=frozen.port)
        link.open()
        os.kill(frozen.pid, signal.SIGSTOP)
        try:
            link.start(records(1, 10))
            link.close()
        finally:
            os.kill(frozen.pid, signal.SIGCONT)
        link.open()
        assert not link.finish(0.05)
        link.send(records(1, 10))
        link.close()


def test_a_confirmation_that_is_faster_than_we_are_counts(
    shared_broker: BrokerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = link_to(port=shared_broker.port)
    link.open()
    publish = link._publish

    def slowly(*arguments: object) -> int:
        mid = publish(*arguments)  # type: ignore[arg-type] - as they came
        eventually(lambda: mid in link._early)
        return mid

    monkeypatch.setattr(link, "_publish", slowly)
    link.send(records(1, 3))
    link.close()


def test_a_frozen_far_end_is_down_within_the_time_given(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path, kind="mosquitto") as frozen:
        link = link_to(port=frozen.port, timeout_s=0.5)
        link.open()
        os.kill(frozen.pid, signal.SIGSTOP)
        try:
            for attempt in (lambda: link.send(records(1, 3)), link.open):
                began = time.monotonic()
                with pytest.raises(LinkDown, match=r"did not (confirm|connect) within 0\.5 s"):
                    attempt()
                link.close()
                assert time.monotonic() - began < 10
        finally:
            os.kill(frozen.pid, signal.SIGCONT)


def test_stopping_ends_a_wait(tmp_path: Path) -> None:
    stop = threading.Event()
    with BrokerProcess(tmp_path, kind="mosquitto") as frozen:
        settings = given.MqttLink(host="127.0.0.1", port=frozen.port, timeout_s=20)
        link = MqttLink(settings, "here", "link", stop)
        link.open()
        os.kill(frozen.pid, signal.SIGSTOP)
        try:
            threading.Timer(0.2, stop.set).start()
            began = time.monotonic()
            with pytest.raises(LinkDown, match="stopping"):
                link.send(records(1, 3))
            assert time.monotonic() - began < 10
        finally:
            os.kill(frozen.pid, signal.SIGCONT)


def test_no_thread_stays_behind(shared_broker: BrokerProcess) -> None:
    before = threading.active_count()
    for _ in range(5):
        link = link_to(port=shared_broker.port)
        link.open()
        link.send(records(1, 3))
        link.close()
    eventually(lambda: threading.active_count() <= before)
