"""The Azure link when things go wrong: nothing is lost, each wait ends, and errors name what to mend."""

import gc
import logging
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

import needs
from authority import Authority
from events import events
from iot_hub import KEY, IotHub, free_address
from oracle import Oracle
from records import records
from skerry.errors import LinkDown
from skerry.testing import eventually
from skerry.uplink import settings as given
from skerry.uplink.downlink import Downlink
from skerry.uplink.links import azure_client
from skerry.uplink.links.azure import AzureLink


def opens(link: AzureLink) -> bool:
    try:
        link.open()
    except LinkDown:
        return False
    return True


# Outages


def test_an_outage_with_batches_under_way_loses_nothing(hub, connect) -> None:
    oracle = Oracle()
    oracle.send(events(1, 100))
    link = connect(hub, timeout_s=2.0)
    link.open()
    link.send(records(1, 20))
    hub.freeze()
    for first in (21, 41, 61):
        link.start(records(first, first + 19))
    hub.kill()

    def wait() -> None:
        while not link.finish(0.1):
            pass

    with pytest.raises(LinkDown):
        wait()
    hub.start()
    eventually(lambda: opens(link))
    assert not link.finish(0.01)
    for first in (21, 41, 61, 81):
        link.start(records(first, first + 19))
    for _ in range(4):
        eventually(link.finish)
    eventually(lambda: hub.arrived and hub.arrived[-1].seq == 100)
    assert len(oracle.check_far_end(hub.arrived, repeats=True)) == 100


def test_a_slow_far_end_is_waited_for(hub, connect) -> None:
    link = connect(hub, timeout_s=10.0)
    link.open()
    hub.freeze()
    link.start(records(1, 10))
    assert not link.finish(0.3)
    hub.thaw()
    eventually(link.finish)


def test_a_frozen_far_end_confirms_nothing_and_is_given_up_in_time(hub, connect) -> None:
    link = connect(hub, timeout_s=1.0)
    link.open()
    hub.freeze()
    link.start(records(1, 10))
    assert not link.finish(0.2)
    with pytest.raises(LinkDown, match="did not confirm within 1 s"):
        eventually(lambda: link.finish(0.1))
    with pytest.raises(LinkDown, match="did not connect within 1 s"):
        link.open()
    hub.thaw()
    eventually(lambda: opens(link), 30)
    link.send(records(1, 10))


def test_nobody_logs_in_after_an_attempt_was_given_up(hub, connect) -> None:
    """It would throw its successor out: they have one name."""
    link = connect(hub, timeout_s=0.5)
    hub.freeze()
    with pytest.raises(LinkDown):
        link.open()
    successor = connect(hub, timeout_s=5.0)
    hub.thaw()
    eventually(lambda: opens(successor), 30)
    successor.send(records(1, 1))
    eventually(lambda: not any(hands.alive for hands in azure_client._threads._stuck), 30)
    successor.send(records(2, 2))
    assert hub.logins == ["gate"]


def test_a_connection_that_is_lost_is_not_made_again_by_the_client(hub, connect) -> None:
    """By itself it would at once: here into the place of the one that took its name."""
    first, second = connect(hub), connect(hub)
    first.open()
    second.open()
    with pytest.raises(LinkDown):
        eventually(lambda: first.finish(0))
    with pytest.raises(AssertionError):
        eventually(lambda: len(hub.logins) > 2, within_s=1.5)
    second.send(records(1, 5))


def test_an_idle_connection_that_breaks_is_noticed(hub, connect) -> None:
    link = connect(hub)
    link.open()
    assert not link.finish(0)
    hub.kill()
    with pytest.raises(LinkDown, match=r"connection lost|Unexpected disconnection"):
        eventually(lambda: link.finish(0))
    with pytest.raises(LinkDown, match="open the link again"):
        link.start(records(1, 1))


def test_a_far_end_that_never_ends_a_handshake_holds_up_nobody(connect, hub, monkeypatch) -> None:
    """Not its successor either, though the client has one thread for all; and not more than a few at once."""
    monkeypatch.setattr(azure_client, "_MOST_STUCK", 2)
    deaf_host = free_address()
    with socket.create_server((deaf_host, 8883)) as listener:
        identity = given.CertificateIdentity(
            hub=deaf_host, device="gate",
            certificate=str(hub.authority.issue("gate")[0]), key=str(hub.authority.ca.with_name("gate.key")),
        )  # fmt: skip
        deaf = connect(hub, identity, timeout_s=0.3)
        for _ in range(2):
            with pytest.raises(LinkDown, match=r"did not connect within 0\.3 s"):
                deaf.open()
        with pytest.raises(LinkDown, match="2 earlier attempts hang still"):
            deaf.open()
        listener.close()
    eventually(lambda: opens(connect(hub)), 30)  # the listener hung up on them


def test_fifty_connections_leave_nothing_behind(hub, connect) -> None:
    link = connect(hub, downlink=Downlink())

    def once(n: int) -> None:
        link.open()
        link.start(records(n, n))
        if n % 2:
            eventually(link.finish)
        link.close()

    def held() -> tuple[int, int]:
        gc.collect()
        return len(list(Path("/proc/self/task").iterdir())), len(list(Path("/proc/self/fd").iterdir()))

    for n in range(1, 6):
        once(n)
    time.sleep(1.2)  # the client's alarm clocks look once a second whether they are still wanted
    threads, files = held()
    for n in range(6, 56):
        once(n)
    eventually(lambda: held()[0] <= threads and held()[1] <= files)


def test_a_process_ends_promptly_with_a_frozen_far_end(hub, tmp_path) -> None:
    file = hub.connection_string(tmp_path)
    script = (
        "import sys, threading; from pathlib import Path\n"
        "from skerry.uplink import settings as s; from skerry.uplink.links.azure import AzureLink\n"
        "from skerry.uplink.downlink import Downlink; from records import records\n"
        f"i = s.ConnectionStringIdentity(connection_string_file={str(file)!r})\n"
        f"l = AzureLink(s.AzureLink(identity=i, ca={str(hub.authority.ca)!r}), 'here',\n"
        f"    Path({str(tmp_path)!r}), threading.Event(), downlink=Downlink())\n"
        "l.open(); print('open', flush=True); sys.stdin.readline()\n"
        "for n in range(50): l.start(records(n * 100 + 1, n * 100 + 100))\n"
        "print('bye', flush=True)\n"
    )
    tests = needs.ROOT / "tests"
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": f"{os.environ['PYTHONPATH']}{os.pathsep}{tests}"},
    ) as child:  # fmt: skip
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        hub.freeze()
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "bye\n"
        child.wait(5)


def test_stopping_ends_every_wait(hub, connect) -> None:
    stop = threading.Event()
    link = connect(hub, stop=stop, timeout_s=60.0)
    link.open()
    hub.freeze()
    link.start(records(1, 2))
    threading.Timer(0.2, stop.set).start()
    with pytest.raises(LinkDown, match="stopping"):
        link.finish()
    with pytest.raises(LinkDown, match="stopping"):
        link.open()


def test_a_link_that_was_closed_says_so(hub, connect) -> None:
    link = connect(hub)
    link.open()
    link.close()
    with pytest.raises(LinkDown, match=r"127\.77\.\S+: the link is closed"):
        link.finish(0)
    with pytest.raises(LinkDown, match="the link is closed"):
        link.report({}, 1)


def test_an_end_of_tls_is_an_end_of_the_connection_to_paho(hub, connect) -> None:
    """paho 1.6.1 would lose its thread over it, and nobody would hear of it."""
    link = connect(hub, timeout_s=60.0)
    link.open()
    paho = azure_client._transport(link._connection._pipeline)._mqtt_client
    sock = paho._sock

    class Ended:
        def __getattr__(self, name: str) -> object:
            return getattr(sock, name)

        def send(self, _data: object) -> int:
            raise ssl.SSLEOFError(8, "EOF occurred in violation of protocol")

    paho._sock = Ended()
    link.start(records(1, 5))
    with pytest.raises(LinkDown, match=r"connection lost|Unexpected disconnection|cancelled"):
        eventually(lambda: link.finish(0.1))


# Tokens


@pytest.fixture
def short_tokens(monkeypatch) -> None:
    """Renewed a second after they were made."""
    base = pytest.importorskip("azure.iot.device.common.pipeline.pipeline_stages_base")
    monkeypatch.setattr(base.SasTokenStage, "DEFAULT_TOKEN_UPDATE_MARGIN", 299)


def test_a_token_is_renewed_with_batches_under_way(hub, connect, short_tokens) -> None:
    oracle = Oracle()
    oracle.send(events(1, 4000))
    link = connect(hub, token_s=300)
    link.open()
    renewed = 0
    pipeline = link._connection._pipeline
    before = str(pipeline.pipeline_configuration.sastoken)
    for first in range(1, 4001, 10):
        link.send(records(first, first + 9))
        now = str(pipeline.pipeline_configuration.sastoken)
        renewed, before = renewed + (now != before), now
        time.sleep(0.008)  # so that it lasts longer than a token
    assert renewed >= 1
    eventually(lambda: hub.arrived[-1].seq == 4000)
    assert len(oracle.check_far_end(hub.arrived, repeats=True)) == 4000


def test_a_token_that_is_not_taken_ends_the_connection(hub, connect, short_tokens) -> None:
    link = connect(hub, token_s=300, timeout_s=3.0)
    link.open()
    hub.kill()  # the next login fails: nobody is there
    with pytest.raises(LinkDown):
        eventually(lambda: link.finish(0.1))
    hub.start()
    link.open()
    link.send(records(1, 2))


# Credentials


def test_a_hub_that_lets_nobody_in_is_said_to(tmp_path, connect) -> None:
    hub = IotHub(tmp_path, refuses=True)
    hub.start()
    with pytest.raises(
        LinkDown, match=r"refused: not authorised \(check link.identity.connection_string_file /"
    ):
        connect(hub).open()
    hub.stop()


def bad_hub(folder: Path, kind: str) -> IotHub:
    match kind:
        case "old":
            return IotHub(folder, days=(-7, -1))
        case "name":
            return IotHub(folder, names=("elsewhere.example",))
        case "authority":
            return IotHub(folder, signed_by=Authority(folder / "other"))
    raise AssertionError(kind)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("old", r"certificate has expired \(check link.ca /.*, and the clock\)"),
        ("name", r"IP address mismatch.* \(is 127.77.\d+.\d+ the right host\?\)"),
        ("authority", r"unable to get local issuer certificate \(check link.ca /"),
    ],
)
def test_a_hub_that_is_not_trusted_is_said_to_be(tmp_path, connect, kind, says) -> None:
    hub = bad_hub(tmp_path, kind)
    hub.start()
    with pytest.raises(LinkDown, match=says):
        connect(hub).open()
    hub.stop()


@pytest.mark.parametrize("kind", ["other", "old"])
def test_a_certificate_that_the_hub_refuses_is_named(tmp_path, connect, kind) -> None:
    hub = IotHub(tmp_path, mutual=True)
    hub.start()
    issuer = Authority(tmp_path / "other") if kind == "other" else hub.authority
    certificate, key = issuer.issue("gate", days=(-7, 2) if kind == "other" else (-7, -1))
    identity = given.CertificateIdentity(
        hub=hub.host, device="gate", certificate=str(certificate), key=str(key)
    )
    with pytest.raises(LinkDown, match=f"refuses link.identity.certificate {certificate}"):
        connect(hub, identity).open()
    hub.stop()


def test_no_secret_is_ever_shown(tmp_path, connect, caplog, capsys) -> None:
    caplog.set_level(logging.DEBUG)
    hub = IotHub(tmp_path)
    hub.start()
    said: list[str] = []
    with capture_logs() as logs:
        link = connect(hub, downlink=Downlink(), timeout_s=1.0)
        link.open()
        token = str(link._connection._pipeline.pipeline_configuration.sastoken)
        link.send(records(1, 2))
        hub.freeze()
        for act in (lambda: link.send(records(3, 4)), link.open):
            with pytest.raises(LinkDown) as down:
                act()
            said += [str(down.value), repr(down.value), repr(down.value.__cause__)]
        hub.kill()
        hub.refuses = True
        hub.start()
        with pytest.raises(LinkDown) as down:
            link.open()
        said += [str(down.value), repr(down.value)]
    signature = token.partition("sig=")[2].partition("&")[0]
    out = capsys.readouterr()
    everything = "\n".join([*said, *map(str, logs), caplog.text, out.out, out.err])
    assert len(signature) > 20
    for secret in (KEY, signature):
        assert secret not in everything
    hub.stop()
