"""The uplink module on AWS and on Greengrass: what is desired there is in force here, and said so there."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import authority
import needs
from greengrass_ipc import Nucleus
from iot_core import IotCore
from skerry.bus import MemoryBroker, MemoryBus
from skerry.settings import TlsSettings
from skerry.testing import eventually, running
from skerry.uplink import settings as given
from skerry.uplink.module import run
from tls_broker import TlsBroker

DESIRED = {"modules": {"uplink": {"sending": {"batch_events": 7}}}}


@contextmanager
def uplink(tmp_path: Path, link: Any) -> Iterator[None]:
    settings = given.UplinkSettings(
        site="here", module="uplink", state=str(tmp_path / "state"), link=link, grace_s=3.0,
        backoff=given.BackoffSettings(first_s=0.05, last_s=0.1),
    )  # fmt: skip
    broker = MemoryBroker()
    with running(run, settings, MemoryBus(broker), "uplink") as host:
        eventually(lambda: host.condition[0] in {"ready", "degraded"})
        yield


def state(reported: Any, version: str) -> str:
    """What is reported of a version of what is desired; "" when nothing is."""
    desired = (reported or {}).get("desired", {})
    return str(desired.get("state", "")) if desired.get("version") == f"shadow/{version}" else ""


@pytest.fixture
def core(tmp_path) -> Iterator[tuple[IotCore, given.AwsLink]]:
    keys = authority.make(tmp_path / "keys")
    broker = TlsBroker(tmp_path / "broker", keys)
    broker.start()
    tls = TlsSettings(ca=f"{keys}/ca.pem", certificate=f"{keys}/client.pem", key=f"{keys}/client.key")
    link = given.AwsLink(endpoint="localhost", port=broker.port, tls=tls, client_id="gate-3", timeout_s=5.0)
    with IotCore(broker.plain) as core:
        yield core, link
    broker.stop()


def shadow(core: IotCore) -> Any:
    return (core.shadow.state or {}).get("reported")


@needs.mosquitto
def test_what_the_shadow_desires_is_applied_and_reported_there(core, tmp_path) -> None:
    far, link = core
    far.desire(DESIRED)
    with uplink(tmp_path, link):
        eventually(lambda: state(shadow(far), "1") == "applied", 40)
        far.desire({"modules": {"uplink": {"sending": {"batch_events": "many"}}}})
        version = str(far.shadow.version)
        eventually(lambda: state(shadow(far), version) == "refused", 40)
        assert "batch_events" in json.dumps(shadow(far)["desired"])


@needs.mosquitto
def test_a_ping_is_answered(core, tmp_path) -> None:
    far, link = core
    with uplink(tmp_path, link):

        def answered() -> bool:
            far.say("skerry/here/remote/requests/ping", {"id": "1"})
            return bool(far.answers)

        eventually(answered)
    assert far.answers[0]["status"] == 200


@pytest.mark.parametrize("reported", ["topic", "configuration", "shadow"])
def test_what_the_configuration_desires_is_applied_and_reported(reported, tmp_path, monkeypatch) -> None:
    with Nucleus() as nucleus:
        nucleus.configuration = {"desired": DESIRED}
        for name, value in nucleus.environment.items():
            monkeypatch.setenv(name, value)

        def last() -> Any:
            if reported == "topic":
                told = [item.payload for item in nucleus.cloud if item.topic == "skerry/here/remote/reported"]
                return json.loads(told[-1]) if told else None
            if reported == "configuration":
                return json.loads(nucleus.configuration.get("reported", "null"))
            service = nucleus.shadows.get("skerry")
            return ((service.state or {}) if service else {}).get("reported")

        with uplink(tmp_path, given.GreengrassLink(reported=reported, timeout_s=5.0)):
            eventually(lambda: ((last() or {}).get("desired") or {}).get("state") == "applied", 40)
