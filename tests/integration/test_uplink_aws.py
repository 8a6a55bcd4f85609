"""The AWS link on AWS's own client: what it says, what it makes of answers, and that it keeps nothing.

Against Mosquitto with MQTT 5 and mutual TLS, and a peer of ours that answers as IoT Core may.
"""

import gc
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

import authority
import needs
from events import events
from mqtt5_peer import HANG_UP, SILENCE, TOO_LARGE, Peer
from oracle import Oracle
from payloads import Payloads
from records import outbound, record, records
from skerry.batches import decode
from skerry.bus import MemoryBroker, MemoryBus
from skerry.channels import OUTBOUND, RECEIPTS
from skerry.errors import ConfigError, LinkDown, Rejected
from skerry.messages import Event, Receipt
from skerry.settings import TlsSettings
from skerry.testing import eventually, running
from skerry.uplink import settings as given
from skerry.uplink.limits import PRESETS, Bounds
from skerry.uplink.links.aws import AwsLink
from skerry.uplink.module import run
from tls_broker import TlsBroker

pytestmark = needs.mosquitto


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Path:
    return authority.make(tmp_path_factory.mktemp("keys"))


def files(keys: Path, certificate: str = "client", ca: str = "ca") -> TlsSettings:
    return TlsSettings(
        ca=str(keys / f"{ca}.pem"), certificate=str(keys / f"{certificate}.pem"), key=str(keys / "client.key")
    )


def settings_for(port: int, tls: TlsSettings, **options: object) -> given.AwsLink:
    up_only = {"shadow": "", "remote_topic": ""}
    return given.AwsLink(
        **{"endpoint": "localhost", "port": port, "tls": tls, "timeout_s": 5.0, **up_only, **options}
    )  # type: ignore[arg-type]  # as a test wants it


def link_to(port: int, tls: TlsSettings, stop: threading.Event | None = None, **options: object) -> AwsLink:
    return AwsLink(settings_for(port, tls, **options), "here", "link", stop or threading.Event())


@pytest.fixture(scope="module")
def broker(keys, tmp_path_factory) -> Iterator[TlsBroker]:
    with broker_at(tmp_path_factory.mktemp("broker"), keys) as broker:
        yield broker


@contextmanager
def broker_at(folder: Path, keys: Path, certificate: str = "server") -> Iterator[TlsBroker]:
    broker = TlsBroker(folder, keys, certificate)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


@pytest.fixture
def peer(keys) -> Iterator[Peer]:
    with Peer(keys) as peer:
        yield peer


@pytest.fixture
def link(peer, keys) -> Iterator[AwsLink]:
    link = link_to(peer.port, files(keys))
    link.open()
    yield link
    link.close()


def seqs(peer: Peer) -> list[list[int]]:
    """Of each message that the peer got, the seq of each event."""
    return [[msgspec.json.decode(raw, type=Event).seq for raw in decode(m.payload)] for m in peer.got]


# What it says


def test_a_message_says_what_rules_ask_for(peer, link) -> None:
    link.send([record(1, lane="alarm"), record(2, lane="alarm", source="/b")])
    message = peer.got[0]
    assert (message.topic, message.content_type) == (
        "skerry/here/far/alarm",
        "application/cloudevents-batch+json",
    )
    kind = record(1).envelope.type
    assert message.properties == [
        ("site", "here"), ("lane", "alarm"), ("events", "2"), ("type", kind),
        ("source", "/a"), ("source", "/b"),
    ]  # fmt: skip
    assert (message.flags, message.format) == (0b0010, 1)  # QoS 1, not retained, not a repeat; UTF-8
    assert decode(message.payload) == [
        record(1, lane="alarm").raw, record(2, lane="alarm", source="/b").raw,
    ]  # fmt: skip


def test_properties_stay_small_whatever_a_batch_holds(peer, link) -> None:
    link.send([record(n, source=f"/camera-{n}") for n in range(1, 60)] + [record(60, source="/x" * 3000)])
    assert sum(len(name) + len(value) for name, value in peer.got[0].properties) < 8192 / 2


def test_each_connection_has_no_session_and_tells_nobody_which_software_this_is(peer, link) -> None:
    flags, properties, name = peer.connects[0]
    assert flags == 0b0000_0010  # clean start; no user name, no password, no will
    assert properties.removeprefix(b"\x11\0\0\0\0") == b""  # session expiry: at once, which is the default
    assert name == "skerry-here-link"


# What it makes of answers


@pytest.mark.parametrize("code", [0, 16])
def test_a_puback_that_says_yes_confirms(peer, link, code) -> None:
    peer.answers.put(code)
    link.send(records(1, 3))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (128, "unspecified"), (131, "implementation"), (135, "iot:Publish"), (144, "link.topic"),
        (145, "identifier in use"), (151, "quota exceeded"),
    ],
)  # fmt: skip
def test_a_refusal_that_is_not_about_the_record_is_tried_again_later(peer, link, code, reason) -> None:
    peer.answers.put(code)
    with pytest.raises(LinkDown, match=f"skerry/here/far/event.*{reason}"):
        link.send(records(1, 3))
    link.open()
    link.send(records(1, 3))
    assert seqs(peer) == [[1, 2, 3], [1, 2, 3]]


def test_a_code_that_mqtt_5_does_not_know_confirms_nothing(peer, link) -> None:
    peer.answers.put(0x42)
    with pytest.raises(LinkDown):
        link.send(records(1, 3))


def test_a_record_that_is_refused_for_what_it_is_goes_to_quarantine_and_the_link_goes_on(peer, link) -> None:
    peer.answers.put(153)
    with pytest.raises(Rejected, match="payload format invalid"):
        link.send(records(1, 1))
    assert not link.finish(0.01)
    link.send(records(2, 2))
    assert [m.connection for m in peer.got] == [1, 1]


def test_hanging_up_over_the_size_refuses_what_was_under_way(peer, link) -> None:
    peer.answers.put(TOO_LARGE)
    with pytest.raises(Rejected, match="packet too large"):
        link.send(records(1, 1))
    with pytest.raises(LinkDown):
        link.send(records(2, 2))
    link.open()
    link.send(records(2, 2))
    assert seqs(peer) == [[1], [2]]


def test_what_the_far_end_says_it_does_not_take_is_not_sent(peer, keys) -> None:
    peer.connack = 0, b"\x27\0\0\x08\0"  # maximum packet size: 2,048
    link = link_to(peer.port, files(keys))
    link.open()
    with pytest.raises(Rejected):
        link.send([record(1, size=4000)])
    link.send(records(2, 2))
    assert seqs(peer) == [[2]]
    link.close()


def test_more_than_iot_core_takes_is_refused_here(peer, keys, link) -> None:
    room = 128 * 1024 - 2 - len(record(1).raw)
    with pytest.raises(Rejected, match="at most 131072 bytes"):
        link.send([record(1, size=room + 200)])
    small = AwsLink(
        settings_for(peer.port, files(keys)), "here", "link", threading.Event(), Bounds(message_bytes=1024)
    )
    with pytest.raises(Rejected, match="at most 1024 bytes"):
        small.start([record(1, size=1024)])
    assert peer.got == []
    assert (small.max_bytes, link.max_bytes) == (1022, 128 * 1024 - 2)


def test_the_largest_batch_that_the_uplink_makes_fits(peer, link) -> None:
    size, batch = 0, []
    for n in range(1, 1000):
        item = record(n)
        if size + len(item.raw) + 1 > link.max_bytes:
            break
        size, batch = size + len(item.raw) + 1, [*batch, item]
    link.send(batch)
    assert len(peer.got[0].payload) <= 128 * 1024


@pytest.mark.parametrize(("code", "reason"), [(135, "not authorized"), (137, "server busy")])
def test_a_refused_connect_says_why(peer, keys, code, reason) -> None:
    peer.connack = code, b""
    link = link_to(peer.port, files(keys))
    with pytest.raises(LinkDown, match=f"refused: {reason}"):
        link.open()


# That it keeps nothing


def test_what_was_not_confirmed_is_sent_again_only_by_us(peer, link) -> None:
    for answer in (SILENCE, HANG_UP):
        peer.answers.put(answer)
    link.start(records(1, 2))
    eventually(lambda: len(peer.got) == 1)
    link.start(records(3, 4))  # more than the uplink would
    eventually(lambda: len(peer.got) == 2)
    with pytest.raises(LinkDown, match="connection lost"):
        eventually(lambda: link.finish(0.1))
    link.open()
    assert not link.finish(0.01)
    link.send(records(5, 5))
    assert seqs(peer) == [[1, 2], [3, 4], [5]]
    assert [m.flags & 0b1000 for m in peer.got] == [0, 0, 0]  # none is marked as a repeat
    assert [flags for flags, _, _ in peer.connects] == [2, 2]


def test_a_connection_that_is_lost_is_not_made_again_by_the_client(peer, link) -> None:
    """By itself it would after a second, with what it holds."""
    peer.answers.put(HANG_UP)
    link.start(records(1, 2))
    with pytest.raises(AssertionError):
        eventually(lambda: len(peer.connects) > 1, within_s=2.5)


def test_what_is_handed_over_after_the_connection_broke_is_refused(peer, link) -> None:
    peer.hang_up()
    eventually(lambda: link._heard.lost)
    with pytest.raises(LinkDown, match="connection lost"):
        link.start(records(1, 2))
    link.open()
    link.send(records(3, 3))
    assert seqs(peer) == [[3]]


def test_the_client_refuses_what_it_gets_in_the_moment_that_the_connection_breaks(peer, link) -> None:
    """Between our look at the connection and its own."""
    peer.hang_up()
    eventually(lambda: link._heard.lost)
    future = link._sdk.publish(link._client, "skerry/here/far/event", b"[]", [])
    assert future.exception(5) is not None


def test_fifty_connections_leave_nothing_behind(peer, keys) -> None:
    link = link_to(peer.port, files(keys))

    def once(n: int) -> None:
        link.open()
        if n % 2:
            peer.answers.put(SILENCE)
            link.start(records(n, n))
            eventually(lambda: len(peer.got) == n)  # else the goodbye may be ahead of it
            link.close()
        else:
            link.send(records(n, n))

    for n in range(1, 16):
        once(n)
    link.close()
    gc.collect()
    before, held = resident_kb(), threads_and_files()
    for n in range(16, 66):
        once(n)
    link.close()
    gc.collect()
    threads, open_files = threads_and_files()
    assert threads <= held[0]
    assert open_files <= held[1]
    assert resident_kb() - before < 4096
    assert len(peer.connects) == 65


def threads_and_files() -> tuple[int, int]:
    """Of this process, the client's own among them."""
    return len(list(Path("/proc/self/task").iterdir())), len(list(Path("/proc/self/fd").iterdir()))


def resident_kb() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")


# Deadlines


def test_a_far_end_that_does_not_confirm_is_given_up_in_time(peer, keys) -> None:
    link = link_to(peer.port, files(keys), timeout_s=2.0)
    link.open()
    peer.answers.put(SILENCE)
    with pytest.raises(LinkDown, match="did not confirm within 2 s"):
        link.send(records(1, 2))


def test_a_puback_that_comes_after_the_link_was_given_up_confirms_nothing(peer, link) -> None:
    link.start(records(1, 2))
    future = link._under_way[0].future
    eventually(future.done)
    link.close()
    with pytest.raises(LinkDown, match="closed"):
        link.finish(0.01)
    link.open()
    assert not link.finish(0.01)


def test_a_frozen_broker_is_given_up_and_found_again(keys, tmp_path) -> None:
    with broker_at(tmp_path, keys) as broker:
        link = link_to(broker.port, files(keys), timeout_s=2.0)
        link.open()
        link.send(records(1, 2))
        broker.freeze()
        with pytest.raises(LinkDown, match="did not confirm within 2 s"):
            link.send(records(3, 4))
        with pytest.raises(LinkDown, match="did not connect within 2 s"):
            link.open()
        began = time.monotonic()
        link.close()
        assert time.monotonic() - began < 5
        broker.thaw()
        eventually(lambda: opens(link), 30)
        link.send(records(3, 4))
        link.close()


def opens(link: AwsLink) -> bool:
    try:
        link.open()
    except LinkDown:
        return False
    return True


def test_nothing_waits_once_the_process_stops(peer, keys) -> None:
    stop = threading.Event()
    link = link_to(peer.port, files(keys), stop, timeout_s=100.0)
    link.open()
    peer.answers.put(SILENCE)
    link.start(records(1, 1))
    threading.Timer(0.2, stop.set).start()
    with pytest.raises(LinkDown, match="stopping"):
        eventually(link.finish)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        other = link_to(mute.getsockname()[1], files(keys), stop, timeout_s=100.0)
        with pytest.raises(LinkDown, match="stopping"):
            other.open()


def test_a_process_ends_though_the_far_end_is_frozen_and_nobody_closed_the_link(keys, tmp_path) -> None:
    code = """
import os, signal, sys, threading
from records import records
from skerry.settings import TlsSettings
from skerry.uplink.links.aws import AwsLink
from skerry.uplink.settings import AwsLink as Settings
ca, certificate, key = sys.argv[3:]
tls = TlsSettings(ca=ca, certificate=certificate, key=key)
link = AwsLink(Settings(endpoint="localhost", port=int(sys.argv[1]), tls=tls), "s", "l", threading.Event())
link.open()
os.kill(int(sys.argv[2]), signal.SIGSTOP)
link.start(records(1, 100))
print("end")
"""
    tls = files(keys)
    with broker_at(tmp_path, keys) as broker:
        where = [str(broker.port), str(broker.pid), tls.ca, tls.certificate, tls.key]
        done = subprocess.run(
            [sys.executable, "-c", code, *where], capture_output=True, text=True, timeout=20, check=False,
            env={**os.environ, "PYTHONPATH": str(needs.ROOT / "tests")},
        )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "end\n"), done.stderr


# Who may come in


@pytest.mark.parametrize(
    ("certificate", "reason"), [("client-other", "unknown ca"), ("client-old", "certificate expired")]
)
def test_a_certificate_that_is_refused_is_named(keys, broker, certificate, reason) -> None:
    link = link_to(broker.port, files(keys, certificate))
    with pytest.raises(LinkDown, match=rf"refuses tls.certificate .*{certificate}.pem: .*{reason}"):
        link.open()


def test_a_far_end_with_another_name_is_refused_by_name(keys, broker) -> None:
    link = link_to(broker.port, files(keys), endpoint="127.0.0.1", timeout_s=2.0)
    with pytest.raises(LinkDown, match=r"mismatch.*is 127.0.0.1 the right endpoint"):
        link.open()


def test_a_far_end_of_another_authority_is_refused_and_the_file_named(keys, broker) -> None:
    link = link_to(broker.port, files(keys, ca="other"), timeout_s=2.0)
    with pytest.raises(LinkDown, match=r"far end's certificate: .*check tls.ca .*other.pem"):
        link.open()


def test_a_far_end_that_has_expired_is_refused(keys, tmp_path) -> None:
    with broker_at(tmp_path, keys, "server-old") as broker:
        link = link_to(broker.port, files(keys), timeout_s=2.0)
        with pytest.raises(LinkDown, match="certificate has expired"):
            link.open()


def test_files_are_read_again_at_each_open(keys, broker, tmp_path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("ca.pem", "client.pem", "client.key"):
        shutil.copy(keys / name, mine)
    link = link_to(broker.port, files(mine))
    link.open()
    shutil.copy(keys / "client-old.pem", mine / "client.pem")
    with pytest.raises(LinkDown, match="certificate expired"):
        link.open()
    (mine / "client.pem").write_text("-----BEGIN CERT")  # half written
    with pytest.raises(LinkDown, match=r"client.pem"):
        link.open()
    (mine / "client.pem").unlink()
    with pytest.raises(LinkDown, match=r"client.pem"):
        link.open()
    shutil.copy(keys / "client.pem", mine / "client.pem")
    link.open()
    link.send(records(1, 1))
    link.close()


def test_a_file_that_is_wrong_at_the_start_is_a_mistake_of_the_settings(keys) -> None:
    with pytest.raises(ConfigError, match=r"absent\.pem"):
        link_to(1, files(keys, "absent"))
    with pytest.raises(ConfigError, match=r"server\.pem"):  # not that key's
        link_to(1, files(keys, "server"))


def test_names_that_are_too_long_are_a_mistake_of_the_settings(keys) -> None:
    with pytest.raises(ConfigError, match="at most 256 bytes and 7 slashes"):
        link_to(1, files(keys), topic="a/b/c/d/e/f/g/{site}/{lane}")
    with pytest.raises(ConfigError, match=r"link\.client_id"):
        AwsLink(settings_for(1, files(keys)), "here" * 40, "link", threading.Event())


def test_without_the_package_it_is_named_and_others_do_not_load_it() -> None:
    code = """
import sys, threading
import skerry.uplink.module, skerry.uplink.links, skerry.uplink.links.mqtt
assert not [name for name in sys.modules if name.startswith(("awscrt", "awsiot"))]
sys.modules["awscrt"] = None
from skerry.errors import ConfigError
from skerry.uplink.settings import AwsLink, UplinkSettings
from skerry.settings import TlsSettings
link = AwsLink(endpoint="e", tls=TlsSettings(certificate="c", key="k"))
try:
    skerry.uplink.links.make(
        UplinkSettings(site="s", module="m", state="/tmp", link=link), threading.Event()
    )
except ConfigError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert "pip install 'skerry[aws]'" in done.stdout, done.stderr


# In the uplink


def uplink_settings(tmp_path: Path, link: given.AwsLink) -> given.UplinkSettings:
    return given.UplinkSettings(
        site="here", module="uplink", state=str(tmp_path), link=link, grace_s=3.0,
        backoff=given.BackoffSettings(first_s=0.05, last_s=0.1),
    )  # fmt: skip


@contextmanager
def uplink(
    tmp_path: Path, link: given.AwsLink, sending: given.Sending | None = None
) -> Iterator[tuple[MemoryBus, list[Receipt]]]:
    """The uplink at work: a bus to it, and the receipts that it sends."""
    broker = MemoryBroker()
    outside, receipts = MemoryBus(broker), list[Receipt]()
    outside.subscribe(RECEIPTS, receipts.append)
    settings = msgspec.structs.replace(uplink_settings(tmp_path, link), sending=sending or given.Sending())
    with running(run, settings, MemoryBus(broker), "uplink") as host:
        eventually(lambda: host.condition[0] in ("ready", "degraded"))
        yield outside, receipts


def test_what_is_over_a_quota_comes_later_and_in_order(peer, keys, tmp_path) -> None:
    for code in (0, 151, 151, SILENCE, 0, HANG_UP):
        peer.answers.put(code)
    link = settings_for(peer.port, files(keys), timeout_s=2.0)
    with uplink(tmp_path, link) as (bus, receipts):
        for first in (1, 101, 201):
            bus.publish(OUTBOUND, outbound(first, events(first, first + 99)), "uplink")
        eventually(lambda: receipts and receipts[-1].upto == 300, 30)
    assert all(not receipt.refused for receipt in receipts)
    oracle = Oracle()
    oracle.send(events(1, 300))
    arrived = [msgspec.json.decode(raw, type=Event) for m in peer.got for raw in decode(m.payload)]
    assert len(oracle.check_far_end(arrived, repeats=True)) == 300


def test_nothing_overtakes_a_batch_that_is_over_a_quota(peer, keys, tmp_path) -> None:
    """It would be taken for a repeat when it comes at last."""
    peer.answers.put(151)
    link = settings_for(peer.port, files(keys))
    free = given.Sending(limits=given.Limits(preset="none"), batch_events=5)
    with uplink(tmp_path, link, free) as (bus, receipts):
        bus.publish(OUTBOUND, outbound(1, events(1, 100)), "uplink")
        eventually(lambda: receipts and receipts[-1].upto == 100, 30)
    firsts = [batch[0] for batch in seqs(peer)]
    assert firsts == [1, *range(1, 101, 5)]


def test_a_broker_that_is_killed_costs_nothing(keys, tmp_path) -> None:
    with broker_at(tmp_path / "broker", keys) as broker:
        seen = Payloads(broker.plain, "skerry/here/far/#")
        seen.start()
        link = settings_for(broker.port, files(keys), timeout_s=2.0)
        with uplink(tmp_path, link) as (bus, receipts):
            bus.publish(OUTBOUND, outbound(1, events(1, 100)), "uplink")
            eventually(lambda: receipts and receipts[-1].upto == 100, 20)
            eventually(lambda: len(seen.got) >= 1)
            broker.kill()
            bus.publish(OUTBOUND, outbound(101, events(101, 200)), "uplink")
            eventually(lambda: not seen.connected)
            broker.start()
            seen.start()
            bus.publish(OUTBOUND, outbound(201, events(201, 300)), "uplink")
            eventually(lambda: receipts[-1].upto == 300, 30)
        oracle = Oracle()
        oracle.send(events(1, 300))

        def arrived() -> list[Event]:
            return [msgspec.json.decode(raw, type=Event) for p in list(seen.got) for raw in decode(p)]

        eventually(lambda: len({e.seq for e in arrived()} & set(range(201, 301))) == 100)
        oracle.check_far_end(arrived(), repeats=True)
        seen.stop()


def test_the_rates_of_iot_core_hold_unless_others_are_given(tmp_path, keys) -> None:
    link = settings_for(1, files(keys))
    settings = uplink_settings(tmp_path, link)
    assert settings.bounds == PRESETS["aws-iot-core"]
    free = given.Sending(limits=given.Limits(preset="none"))
    assert msgspec.structs.replace(settings, sending=free).bounds == Bounds()
    mqtt = given.MqttLink(host="h")
    assert msgspec.structs.replace(settings, link=mqtt).bounds == Bounds()


def test_settings_that_cannot_work_are_refused() -> None:
    tls = TlsSettings(certificate="c", key="k")
    for tls_, topic, what in (
        (TlsSettings(certificate="c"), "a", "tls.key"),
        (TlsSettings(key="k"), "a", "tls.certificate"),
        (tls, "a/{type}", "topic: expected only {site} and {lane}"),
        (tls, "a/#", "no wildcard"),
        (tls, "a/{", "expected a template"),
    ):
        with pytest.raises(ValueError, match=what):
            given.AwsLink(endpoint="e", tls=tls_, topic=topic)
