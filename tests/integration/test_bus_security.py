"""A secured bus: who is let in, who may say and hear what, and a whole site that lives on it."""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest

import needs
import secured
from remote_site import Operator
from secured_peers import Peer, SecuredBroker, context, let_in
from site_run import site_run
from skerry.broker import BrokerProcess, answers
from skerry.channels import CHANNELS, REPORTED, STATUS
from skerry.cli import main
from skerry.deploy.account import camera_ledger, event_ledger, read_counts
from skerry.deploy.acl import identities
from skerry.deploy.certificates import Issued, issue
from skerry.deploy.keyring import Keyring, Wish
from skerry.deploy.local import Supervisor
from skerry.deploy.plan import Place, Plan, plan
from skerry.ledger import balanced
from skerry.mqtt import MqttBus
from skerry.settings import BusSettings
from skerry.testing import eventually

pytestmark = needs.mosquitto

DAY = dt.timedelta(days=1)
SITE = "gate2"
KEYS = ("gate", "hall", *secured.MODULES, "observer", "operator", "stranger")
TOPICS = [channel.topic(SITE, key) for channel in CHANNELS for key in KEYS]
ELSEWHERE = [
    "skerry", f"skerry/{SITE}", f"skerry/{SITE}/status", f"skerry/{SITE}/status/uplink/more",
    f"skerry/{SITE}/remote/requests/restart", f"skerry/{SITE}/other", "skerry/hall/status/uplink",
    "/", "elsewhere", "$SYS/broker/version",
]  # fmt: skip


def certificates(
    folder: Path, names: tuple[str, ...], now: dt.datetime | None = None, **wish: object
) -> Path:
    Keyring(folder, now or dt.datetime.now(dt.UTC)).provide(Wish(site=SITE, names=names, **wish))
    return folder


@pytest.fixture(scope="module")
def the_plan(tmp_path_factory) -> Plan:
    return secured.two_captures(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def certs(tmp_path_factory, the_plan) -> Path:
    return certificates(tmp_path_factory.mktemp("certs"), identities(the_plan))


@pytest.fixture(scope="module")
def broker(certs, the_plan) -> Iterator[SecuredBroker]:
    with SecuredBroker(certs, the_plan) as process:
        yield process


@pytest.fixture
def peers() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def peer(peers: ExitStack, broker: SecuredBroker, certs: Path, name: str, **options: str) -> Peer:
    made = Peer(broker.port, certs / name, **options)
    peers.callback(made.close)
    return made


class TestWhoMaySayAndHearWhat:
    """The rules as a person wrote them down, against what a broker really does."""

    def test_everybody_says_and_hears_exactly_their_own(self, broker, certs, peers, the_plan):
        """Each writes to every topic there is, and each listens to all of them."""
        everybody = {
            name: peer(peers, broker, certs, name) for name in identities(the_plan) if name != "broker"
        }
        for one in everybody.values():
            one.subscribe("#", "$SYS/#")
            one.settled()
            one.heard.clear()
        for name, one in everybody.items():
            one.publish([*TOPICS, *ELSEWHERE], name.encode())
        table = secured.expected(SITE)
        said = {(topic, name) for name, (writes, _) in table.items() for topic in writes}
        assert len(said) == 53
        for name, one in everybody.items():
            heard = [(topic, payload.decode()) for topic, payload, _ in one.settled()]
            assert len(heard) == len(set(heard))
            _, reads = table[name]
            is_reader = name in {"observer", "operator"}
            assert set(heard) == {(t, who) for t, who in said if is_reader or t in reads}, name

    def test_exact_subscription_is_no_way_around(self, broker, certs, peers):
        """A broker that judged only wildcards would pass the test above."""
        nosy = peer(peers, broker, certs, "capture-gate")
        nosy.subscribe(*TOPICS)
        for name in ("buffer", "decision", "capture-hall"):
            peer(peers, broker, certs, name).publish(TOPICS, name.encode())
        assert {topic for topic, _, _ in nosy.settled()} <= secured.expected(SITE)["capture-gate"][1]
        assert "buffer" not in {payload.decode() for _, payload, _ in nosy.settled()}

    def test_nothing_forbidden_is_kept_for_later(self, broker, certs, peers):
        peer(peers, broker, certs, "capture-gate").publish([*TOPICS, *ELSEWHERE[:-1]], b"kept", retain=True)
        operator = peer(peers, broker, certs, "operator")
        operator.subscribe("#")
        kept = {topic for topic, payload, retained in operator.settled() if retained}
        assert kept == secured.expected(SITE)["capture-gate"][0]
        # And what is kept is not for everybody.
        nosy = peer(peers, broker, certs, "capture-hall")
        nosy.subscribe("#")
        assert nosy.settled() == []
        peer(peers, broker, certs, "capture-gate").publish(sorted(kept), b"", retain=True)

    def test_last_will_is_judged_as_what_is_published(self, broker, certs, peers):
        operator = peer(peers, broker, certs, "operator")
        operator.subscribe("#")
        for module, subject in (("uplink", "buffer"), ("uplink", "uplink")):
            dying(broker.port, certs / module, STATUS.topic(SITE, subject), b"lost")
        eventually(lambda: [h for h in operator.heard if h[0] == STATUS.topic(SITE, "uplink")], 20)
        assert STATUS.topic(SITE, "buffer") not in {topic for topic, _, _ in operator.settled()}

    @pytest.mark.parametrize("user", ["buffer", "operator", "root"])
    def test_name_is_the_certificates_whatever_else_is_said(self, broker, certs, peers, user):
        operator = peer(peers, broker, certs, "operator")
        operator.subscribe("#")
        liar = peer(peers, broker, certs, "capture-gate", user=user, client=f"skerry-{SITE}-buffer")
        liar.publish(TOPICS, b"lie")
        assert {t for t, _, _ in operator.settled()} == secured.expected(SITE)["capture-gate"][0]

    @pytest.mark.parametrize("client", ["buffer", f"skerry-{SITE}-buffer", "skerry-gate2-uplink"])
    def test_nobody_takes_over_the_connection_of_another(self, broker, certs, peers, client):
        victim = peer(peers, broker, certs, "buffer", client=f"skerry-{SITE}-buffer")
        peer(peers, broker, certs, "capture-gate", client=client).publish([TOPICS[0]], b"x")
        assert victim.settled() == []
        assert not victim.gone.is_set()

    def test_module_that_was_started_anew_takes_over_its_own(self, broker, certs, peers):
        before = peer(peers, broker, certs, "buffer", client=f"skerry-{SITE}-buffer")
        peer(peers, broker, certs, "buffer", client=f"skerry-{SITE}-buffer")
        assert before.gone.wait(20)


def dying(port: int, folder: Path, topic: str, will: bytes) -> None:
    """Connect with a will, and vanish."""

    def text(value: bytes) -> bytes:
        return len(value).to_bytes(2, "big") + value

    body = text(b"MQTT") + bytes([4, 0x06 | 0x08]) + b"\0\5" + text(b"x") + text(topic.encode()) + text(will)
    with socket.create_connection(("127.0.0.1", port), 20) as raw:
        connection = context(folder).wrap_socket(raw, server_hostname="localhost")
        connection.sendall(b"\x10" + bytes([len(body)]) + body)
        assert connection.recv(4) == bytes.fromhex("20020000")
        connection.close()


class TestWhoIsLetIn:
    def test_everybody_of_the_site(self, broker, certs, the_plan):
        for name in identities(the_plan):
            assert let_in(broker.port, context(certs / name)) == (name != "broker"), name

    def test_nobody_without_a_certificate(self, broker, certs, tmp_path):
        assert not let_in(broker.port, context(tmp_path, certs / "operator" / "ca.crt"))

    def test_nobody_of_another_authority_by_the_same_name(self, broker, certs, the_plan, tmp_path):
        """Another site's, with the same names in it."""
        theirs = certificates(tmp_path, identities(the_plan))
        assert not let_in(broker.port, context(theirs / "operator", certs / "operator" / "ca.crt"))

    def test_nobody_whose_certificate_has_ended_or_not_begun(self, broker, certs, tmp_path, the_plan):
        for name, now in (("ended", -400 * DAY), ("early", 2 * DAY)):
            folder = tmp_path / name
            shutil.copytree(certs / "authority", folder / "authority")
            certificates(folder, identities(the_plan), dt.datetime.now(dt.UTC) + now)
            assert not let_in(broker.port, context(folder / "operator", certs / "operator" / "ca.crt")), name

    def test_nobody_with_a_certificate_that_a_module_signed(self, broker, certs, tmp_path):
        """A module's key must not make operators."""
        its = Issued(
            certificate=(certs / "capture-gate" / "tls.crt").read_bytes(),
            key=(certs / "capture-gate" / "tls.key").read_bytes(),
        )
        forged = issue(its, "operator", dt.datetime.now(dt.UTC), 1)
        (tmp_path / "tls.crt").write_bytes(forged.certificate + its.certificate)
        (tmp_path / "tls.key").write_bytes(forged.key)
        assert not let_in(broker.port, context(tmp_path, certs / "operator" / "ca.crt"))

    def test_name_that_is_not_in_the_rules_may_do_nothing(self, broker, certs, peers, tmp_path, the_plan):
        """A module that has left the site, or was never of it."""
        shutil.copytree(certs / "authority", tmp_path / "authority")
        certificates(tmp_path, ("old",))
        operator = peer(peers, broker, certs, "operator")
        operator.subscribe("#")
        old = peer(peers, broker, tmp_path, "old")
        old.subscribe("#")
        old.publish([*TOPICS, STATUS.topic(SITE, "old")], b"x")
        peer(peers, broker, certs, "buffer").publish([STATUS.topic(SITE, "buffer")], b"y")
        assert {payload for _, payload, _ in operator.settled()} == {b"y"}
        assert old.settled() == []

    def test_impostor_of_the_broker_is_not_told_anything(self, certs, the_plan, tmp_path):
        """A module's certificate is none for a server."""
        shutil.copytree(certs / "capture-gate", tmp_path / "broker")
        with SecuredBroker(tmp_path, the_plan) as impostor:
            assert not let_in(impostor.port, context(certs / "buffer"))


RUNNING = f"""{secured.SITE}
rules:
  - {{name: counted, kind: line, camera: gate, line: [[0.5, 0.0], [0.5, 1.0]]}}
  - {{name: there, kind: presence, camera: hall}}
"""


class SecuredSite:
    """Six modules as processes on a secured broker, and a far end that is a broker of its own."""

    def __init__(self, folder: Path, far: int) -> None:
        link = f"link: {{kind: mqtt, host: 127.0.0.1, port: {far}}}\n"
        self.site = secured.load(folder, RUNNING + link)
        self.certs = folder / "certs"
        place = Place(
            state=str(folder / "state"), frames=str(folder / "frames"), output=str(folder),
            bus=BusSettings(host="localhost"), certificates=str(self.certs / "{module}"),
        )  # fmt: skip
        (folder / "frames").mkdir()
        self.names = identities(plan(self.site, place))
        certificates(self.certs, self.names)
        self.broker = SecuredBroker(self.certs, plan(self.site, place))
        place = msgspec.structs.replace(
            place, bus=BusSettings(host="localhost", port=self.broker.port, keepalive_s=2)
        )
        self.plan = plan(self.site, place)
        self.observing = place.bus_of("observer")
        self.supervisor = Supervisor(self.plan, folder / "logs", None)
        self.folder = folder

    def until(self, fact, within_s: float = 90.0) -> None:
        """Wait, and see that nobody dies meanwhile."""

        def tended() -> object:
            self.supervisor.tend(lambda _: True)
            return fact()

        try:
            eventually(tended, within_s)
        except AssertionError:
            logs = [p.read_text()[-1500:] for p in sorted((self.folder / "logs").glob("*.log"))]
            raise AssertionError("\n".join([self.broker.log[-2000:], *logs])) from None


@pytest.fixture
def running(tmp_path) -> Iterator[tuple[SecuredSite, Operator]]:
    with ExitStack() as stack:
        far = stack.enter_context(BrokerProcess(tmp_path / "far", kind="mosquitto"))
        operator = Operator(far.port, SITE)
        stack.callback(operator.close)
        made = SecuredSite(tmp_path, far.port)
        stack.enter_context(made.broker)
        stack.callback(made.supervisor.stop)
        yield made, operator


def events(operator: Operator) -> int:
    return sum("/far/" in topic for topic, _ in list(operator.heard))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_site_lives_on_a_secured_bus_is_steered_and_loses_nothing(running):
    """Every right that a module needs is there: none of them says anything that the broker refuses."""
    site, operator = running
    before = read_counts(site.plan)
    reported: dict[str, str] = {}
    statuses: dict[str, str] = {}
    bus = MqttBus(site.observing, SITE, f"run-{os.getpid()}", will=None)
    bus.subscribe(REPORTED, lambda m: reported.update({m.module: m.state}))
    bus.subscribe(STATUS, lambda m: statuses.update({m.module: m.state}))
    bus.connect()
    site.supervisor.start()
    try:
        site.until(lambda: set(statuses.values()) == {"ready"} and len(statuses) == 6)
        site.until(lambda: events(operator) >= 5)
        patch = {"log_level": "debug"}
        wanted = json.dumps({"version": 1, "modules": {"decision": patch, "capture-hall": patch}})
        operator._client.publish(f"skerry/{SITE}/remote/desired", wanted, qos=1, retain=True)
        site.until(lambda: reported.get("decision") == reported.get("capture-hall") == "applied")
        for command in ("ping", "flush", "diagnostics"):
            answer = operator.ask(command, meanwhile=lambda: site.supervisor.tend(lambda _: True))
            assert answer[0] == 200, answer
        pinged = operator.ask("ping")[1]["modules"]
        assert set(pinged) == set(secured.MODULES)
    finally:
        site.supervisor.stop()
        eventually(lambda: set(statuses.values()) == {"stopped"}, 20)
        bus.close()
    after = read_counts(site.plan)
    cameras = {c: camera_ledger(site.plan, c, before, after, died=False) for c in ("gate", "hall")}
    ledger = event_ledger(site.plan, before, after)
    assert balanced(cameras, ledger), (cameras, ledger)
    assert all(camera.inferred > 0 for camera in cameras.values()), cameras
    assert ledger.delivered >= 5
    assert site.broker.denied == []
    assert sum(site.supervisor.restarts.values()) == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_certificates_and_authority_are_exchanged_while_the_site_runs(running):
    """Modules read their files at each connection: a broker that starts again is enough."""
    site, operator = running
    site.supervisor.start()
    site.until(lambda: events(operator) >= 2)
    old = Path(shutil.copytree(site.certs / "operator", site.folder / "before"))
    trust = site.certs / "operator" / "ca.crt"
    # Everything is due, the authority too: what is made now is signed by another one.
    certificates(site.certs, site.names, renew=True, within=4000 * DAY)
    assert trust.read_text().count("BEGIN CERTIFICATE") == 2
    site.broker.stop()
    site.broker.start()
    assert let_in(site.broker.port, context(site.certs / "operator", site.certs / "authority" / "ca.crt"))
    assert let_in(site.broker.port, context(old, trust)), "the authority before it has not ended"
    everybody_is_back(site, operator)
    # Now nobody trusts the old one any more: who comes back has read the new files.
    (site.certs / "authority" / "old.crt").unlink()
    certificates(site.certs, site.names)
    assert trust.read_text().count("BEGIN CERTIFICATE") == 1
    site.broker.stop()
    site.broker.start()
    assert not let_in(site.broker.port, context(old, trust))
    everybody_is_back(site, operator)
    assert sum(site.supervisor.restarts.values()) == 0
    assert site.broker.denied == []


def everybody_is_back(site: SecuredSite, operator: Operator) -> None:
    """A broker that was started again knows nothing: what it has of the modules they have told it anew."""
    statuses: dict[str, str] = {}
    bus = MqttBus(site.observing, SITE, "run", will=None)
    bus.subscribe(STATUS, lambda m: statuses.update({m.module: m.state}))
    bus.connect()
    site.until(lambda: len(statuses) == 6 and set(statuses.values()) == {"ready"})
    bus.close()
    delivered = events(operator)
    site.until(lambda: events(operator) >= delivered + 3)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_run_secure_gives_a_local_site_all_of_it(tmp_path):
    site = needs.ROOT / "sites" / "demo.yaml"
    with site_run(tmp_path / "out", "run", str(site), "--secure") as run:
        run.wait_for_events(2, 90)
        told = (run.out / "broker" / "mosquitto.conf").read_text()
        port = int(re.search(r"^listener (\d+) 127", told, re.MULTILINE)[1])
        assert let_in(port, context(run.out / "certs" / "operator"))
        assert not let_in(port, context(tmp_path, run.out / "certs" / "operator" / "ca.crt"))
        assert not answers(port)
        code, result = run.finish(number=signal.SIGINT)
    assert (code, result["ledger_balanced"], result["restarts"]) == (0, True, {})


@pytest.mark.parametrize(
    ("bus", "problem"),
    [
        ("{broker: amqtt}", "--secure: expected mosquitto, got amqtt"),
        ("{host: gw.local}", "--secure: expected a broker of our own"),
    ],
)
def test_run_secure_refuses_a_broker_that_it_cannot_tell(tmp_path, capfd, bus, problem):
    secured.load(tmp_path, f"{secured.SITE}bus: {bus}\n")
    assert main(["run", str(tmp_path / "site.yaml"), "--secure", "--out", str(tmp_path / "out")]) == 78
    assert capfd.readouterr().err.startswith(problem)
