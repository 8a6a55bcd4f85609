"""The rules of a secured bus, compared with what a person would write by hand."""

import ast
from collections import defaultdict
from pathlib import Path

import msgspec
import pytest

from needs import ROOT
from secured import CHANNELS_OF, SITE, expected, load, two_captures
from skerry import channels
from skerry.broker import mosquitto_configuration
from skerry.channels import CHANNELS, KINDS
from skerry.deploy.acl import acl, broker_configuration, grants, identities
from skerry.deploy.plan import Place, Plan
from skerry.deploy.plan import plan as planned
from skerry.errors import ConfigError
from skerry.settings import BusSettings

SOURCE = ROOT / "modules" / "skerry"
SHARED = ("service.py", "remote.py")
"""What runs in every module and uses the bus."""


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> Plan:
    return two_captures(tmp_path_factory.mktemp("site"))


def rules(text: str) -> dict[str, dict[str, str]]:
    """User to topic to access, as Mosquitto would read it."""
    found: dict[str, dict[str, str]] = {}
    user = ""
    for line in text.splitlines():
        match line.split(" ", 2):
            case ["user", user]:
                assert user not in found
                found[user] = {}
            case ["topic", access, topic]:
                assert topic not in found[user], "a second rule of one topic is not looked at"
                found[user][topic] = access
            case [first, *_]:
                assert first in {"", "#"}, line
    return found


def test_every_identity_may_do_exactly_what_was_written_down_by_hand(plan):
    assert {name: (set(its.writes), set(its.reads)) for name, its in grants(plan).items()} == expected(
        "gate2"
    )


def test_file_says_the_same_as_the_grants(plan):
    found = rules(acl(plan))
    assert set(found) == set(identities(plan)) - {"broker"}
    for name, its in grants(plan).items():
        assert {t for t, access in found[name].items() if "write" in access} == set(its.writes)
        assert {t for t, access in found[name].items() if "read" in access} == set(its.reads)


def test_no_module_has_a_wildcard_and_no_reader_writes(plan):
    for name, its in grants(plan).items():
        if name in {"observer", "operator"}:
            assert (its.writes, its.reads) == ((), ("skerry/gate2/#",))
        else:
            assert not set("+#") & set("".join(its.writes + its.reads))


def test_each_channel_has_a_writer_and_all_but_those_for_screens_a_reader():
    assert {c.name for c in CHANNELS if not c.writers} == set()
    assert {c.name for c in CHANNELS if not c.readers} == {"delivered"}


def test_what_one_end_may_write_the_other_may_read(plan):
    """And nothing is read that nobody may write: a topic of one end alone is a mistake in the table."""
    everybody = [its for name, its in grants(plan).items() if name not in {"observer", "operator"}]
    written = {topic for its in everybody for topic in its.writes}
    read = {topic for its in everybody for topic in its.reads}
    assert read <= written
    assert {t.split("/")[2] for t in written - read} == {"delivered", "metrics"}


def test_table_names_exactly_the_channels_that_the_code_uses():
    """For each kind of module, every publish and subscribe of its folder and of what all share."""
    by_constant = {name: c for name, c in vars(channels).items() if isinstance(c, channels.Channel)}
    for kind in KINDS:
        used = defaultdict(set)
        for path in [*(SOURCE / kind).rglob("*.py"), *(SOURCE / name for name in SHARED)]:
            for method, constant in calls(path):
                used[method].add(by_constant[constant].name)
        assert used["publish"] == {c.name for c in CHANNELS if kind in c.writers}, kind
        assert used["subscribe"] == {c.name for c in CHANNELS if kind in c.readers}, kind
        assert used == {"publish": used["publish"], "subscribe": used["subscribe"]}
        assert CHANNELS_OF[kind] == (used["publish"], used["subscribe"])


def test_nothing_else_that_modules_share_uses_a_channel():
    """Or it would have to be in `SHARED`."""
    shared = [path for path in SOURCE.glob("*.py") if path.name not in {*SHARED, "bus.py", "mqtt.py"}]
    assert len(shared) > 20
    assert [path.name for path in shared if list(calls(path))] == []


def calls(path: Path):
    """(publish or subscribe, constant of the channel) of a file: what is called with a name in capitals."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            method = node.func.attr.removesuffix("_settling")
            name = node.args[0].id if isinstance(node.args[0], ast.Name) else ""
            if method in {"publish", "subscribe"} and name.isupper() and not name.startswith("_"):
                yield method, name


def test_site_with_one_capture_writes_all_its_cameras(plan):
    (one, *_), rest = plan.of("capture"), plan.parts[2:]
    cameras = tuple(c for part in plan.of("capture") for c in part.settings.cameras)
    part = msgspec.structs.replace(one, settings=msgspec.structs.replace(one.settings, cameras=cameras))
    its = grants(Plan(site="gate2", parts=(part, *rest)))[one.module]
    assert {t for t in its.writes if "/frames/" in t} == {
        f"skerry/gate2/frames/{n}" for n in ("gate", "hall")
    }


@pytest.mark.parametrize("name", ["broker", "operator", "observer", "buffer"])
def test_module_cannot_have_the_name_of_somebody_else(plan, name):
    first, *rest = plan.parts
    with pytest.raises(ConfigError, match=f"captures.{name}: expected a name that nobody else has"):
        acl(Plan(site="gate2", parts=(msgspec.structs.replace(first, module=name), *rest)))


def test_rules_and_configuration_are_the_same_each_time(plan, tmp_path):
    assert acl(plan) == acl(two_captures(tmp_path))
    assert broker_configuration("/x") == broker_configuration("/x")


def test_broker_asks_for_a_certificate_and_goes_by_the_name_in_it():
    lines = broker_configuration("/certs", port=18883, address="127.0.0.1", user="root").splitlines()
    assert {
        "listener 18883 127.0.0.1", "user root", "cafile /certs/ca.crt", "certfile /certs/tls.crt",
        "keyfile /certs/tls.key", "acl_file /certs/acl", "require_certificate true", "allow_anonymous false",
        "use_identity_as_username true", "use_username_as_clientid true", "tls_version tlsv1.2",
    } <= set(lines)  # fmt: skip
    assert [line for line in lines if line.startswith("listener")] == ["listener 18883 127.0.0.1"]
    assert not [line for line in broker_configuration("/certs").splitlines() if line.startswith("user")]


def test_secured_broker_has_the_bounds_of_the_local_one():
    local = {
        line for line in mosquitto_configuration(1).splitlines() if line.startswith(("max_", "message_"))
    }
    assert len(local) == 4
    assert local <= set(broker_configuration("/x").splitlines())


def test_a_site_with_an_updater_lets_it_offer_and_hear_what_became_of_it(tmp_path):
    updater = "updater: {root: root.json, slots: {gate: {model: parts}}}\n"
    (tmp_path / "root.json").touch()
    text = SITE.replace("models:\n", f"{updater}models:\n", 1)
    text = text.replace("- package:", "- slot: gate\n    package:", 1)
    site = load(tmp_path, text)
    place = Place(state="/state", frames="/frames", output="/output", bus=BusSettings())
    granted = grants(planned(site, place))
    assert "skerry/gate2/offers/inference" in set(granted["updater"].writes) & set(granted["inference"].reads)
    assert "skerry/gate2/activations/inference" in set(granted["inference"].writes) & set(
        granted["updater"].reads
    )
    assert "skerry/gate2/desired/updater" in granted["uplink"].writes
