"""Fleet provisioning by claim, on a Mosquitto with its services: one whole identity, and few certificates."""

import logging
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import needs
from authority import Authority
from iot_core import IotCore
from payloads import Payloads
from records import records
from skerry.errors import ConfigError, LinkDown
from skerry.settings import TlsSettings
from skerry.testing import eventually
from skerry.uplink import settings as given
from skerry.uplink.downlink import Downlink
from skerry.uplink.links.aws import AwsLink
from skerry.uplink.links.aws_client import Sdk
from skerry.uplink.links.aws_provisioning import Provision
from tls_broker import TlsBroker

pytestmark = needs.mosquitto
NO = {"statusCode": 400, "errorCode": "InvalidParameters", "errorMessage": "SerialNumber is not known"}


@pytest.fixture(scope="module")
def signer(tmp_path_factory) -> Authority:
    signer = Authority(tmp_path_factory.mktemp("keys"))
    signer.issue("server", "localhost")
    _, key = signer.issue("claim")
    signer.issue("claim-old", days=(-7, -1), key=key)
    return signer


@pytest.fixture(scope="module")
def keys(signer) -> Path:
    return signer.ca.parent


@pytest.fixture(scope="module")
def broker(keys, tmp_path_factory) -> Iterator[TlsBroker]:
    broker = TlsBroker(tmp_path_factory.mktemp("broker"), keys)
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def core(broker, signer) -> Iterator[IotCore]:
    with IotCore(broker.plain, signer, thing="gate-7") as core:
        yield core


@pytest.fixture
def make(keys, broker, tmp_path) -> Iterator[Callable[..., AwsLink]]:
    made = []

    def make(*, claim: str = "claim", template: str = "skerry", **options: Any) -> AwsLink:
        link = AwsLink(
            settings_for(broker.port, keys, claim, template, **options), "here", "link", threading.Event(),
            downlink=Downlink(), state=tmp_path / "state",
        )  # fmt: skip
        made.append(link)
        return link

    yield make
    for link in made:
        link.close()


def settings_for(
    port: int, keys: Path, claim: str = "claim", template: str = "skerry", **options: Any
) -> given.AwsLink:
    provisioning = given.Provisioning(
        template=template, claim_certificate=str(keys / f"{claim}.pem"), claim_key=str(keys / "claim.key"),
        parameters={"SerialNumber": "7"},
    )  # fmt: skip
    usual = {"port": port, "tls": TlsSettings(ca=str(keys / "ca.pem")), "timeout_s": 5.0}
    return given.AwsLink(**{"endpoint": "localhost", "provisioning": provisioning, **usual, **options})


def identity(tmp_path: Path) -> Path:
    return tmp_path / "state" / "aws" / "identity"


def test_a_claim_becomes_an_identity_of_our_own_which_is_used_from_then_on(
    core, make, broker, tmp_path
) -> None:
    core.shadow.update({"state": {"desired": {"n": 1}}})
    link = make()
    link.open()
    home = identity(tmp_path)
    assert (home / "thing").read_text() == "gate-7"
    for name in ("certificate.pem", "private.key", "thing"):
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert sorted(path.name for path in home.parent.iterdir()) == ["identity"]  # no note, no draft
    assert core.registered == [
        {"certificateOwnershipToken": "token-0-of-ownership", "parameters": {"SerialNumber": "7"}}
    ]
    link.report({"a": 1}, 5.0)  # to the shadow of the thing that was made
    assert core.shadow.state is not None
    seen = Payloads(broker.plain, "skerry/here/far/#")
    seen.start()
    link.send(records(1, 2))
    eventually(lambda: seen.got)
    seen.stop()
    again = make()
    again.open()
    again.send(records(3, 3))
    assert len(core.made) == 1
    assert again._id == "gate-7"


def test_a_template_that_says_no_is_said_and_costs_one_certificate(core, make, tmp_path) -> None:
    core.reject["skerry"] = NO
    link = make()
    for _ in range(3):
        with pytest.raises(
            LinkDown, match=r"400 InvalidParameters: SerialNumber is not known .*template skerry"
        ) as no:
            link.open()
        assert no.value.retry_after_s >= 60
    assert len(core.made) == 1
    assert not identity(tmp_path).exists()
    core.reject.clear()
    link.open()
    link.send(records(1, 1))
    assert len(core.made) == 1


def test_a_token_that_is_good_no_more_is_let_go(core, make, tmp_path) -> None:
    core.reject["skerry"] = {
        "statusCode": 400,
        "errorCode": "InvalidCertificateOwnershipToken",
        "errorMessage": "x",
    }
    link = make()
    with pytest.raises(LinkDown, match="InvalidCertificateOwnershipToken"):
        link.open()
    core.reject.clear()
    with pytest.raises(LinkDown, match="1 certificates were asked for in vain") as wait:
        link.open()
    assert 0 < wait.value.retry_after_s <= 60
    assert len(core.made) == 1


def test_a_claim_that_may_make_no_certificate_is_said(core, make) -> None:
    core.reject["create"] = {"statusCode": 403, "errorCode": "Forbidden", "errorMessage": "policy"}
    with pytest.raises(LinkDown, match=r"403 Forbidden: policy .*the claim is not allowed"):
        make().open()


def test_an_answer_that_never_comes_does_not_make_for_more_requests(core, make) -> None:
    core.silent = True
    link = make(timeout_s=0.5)
    with pytest.raises(LinkDown, match="create/json: no answer"):
        link.open()
    for _ in range(5):
        with pytest.raises(LinkDown, match="asked for in vain"):
            link.open()
    assert core.asked.count("$aws/certificates/create/json") == 1


def test_the_wait_for_another_certificate_doubles_up_to_an_hour_and_survives_a_restart(
    core, keys, broker, tmp_path
) -> None:
    core.silent = True
    now = [1_000_000.0]
    settings = settings_for(broker.port, keys, timeout_s=0.3)

    def waits() -> float:
        """As after a kill: nothing is left of what was there."""
        provision = Provision(
            Sdk(), settings, "me", tmp_path / "aws", threading.Event(), clock=lambda: now[0]
        )
        with pytest.raises(LinkDown) as no:
            provision.obtain()
        return no.value.retry_after_s

    expected = [60, 120, 240, 480, 960, 1920, 3600, 3600]
    for wait in expected:
        assert waits() == 0
        assert waits() == wait
        now[0] += wait + 1
    now[0] -= 500_000  # a clock that was set back holds nothing up for ever
    assert waits() == 0


def test_a_certificate_that_is_not_one_is_no_identity(core, make, tmp_path) -> None:
    core._create = lambda: {  # type: ignore[method-assign]  # the far end is ours
        "certificatePem": "x", "privateKey": "k3y", "certificateOwnershipToken": "t",
    }  # fmt: skip
    core.made.append("t")
    with pytest.raises(LinkDown, match="no certificate with its key") as no:
        make().open()
    assert "k3y" not in str(no.value)
    assert not identity(tmp_path).exists()


@pytest.mark.parametrize("payload", [b"{no", b"[]", b'{"certificatePem": 5}', b"{" * 50_000])
def test_an_answer_that_is_none_is_said_and_not_shown(core, make, payload) -> None:
    core.raw["$aws/certificates/create/json"] = payload
    with pytest.raises(LinkDown, match="expected an answer, got something else"):
        make().open()


def test_wrong_claims_are_named(core, make, keys) -> None:
    with pytest.raises(LinkDown, match=r"the claim: .*refuses tls.certificate .*claim-old.pem: .*expired"):
        make(claim="claim-old").open()
    with pytest.raises(LinkDown, match=r"the claim: link.tls.certificate: .*absent.pem"):
        make(claim="absent").open()


def test_provisioning_ends_when_the_process_stops_and_when_the_far_end_is_frozen(
    core, keys, broker, tmp_path
) -> None:
    stop = threading.Event()

    def link(timeout_s: float) -> AwsLink:
        settings = settings_for(broker.port, keys, timeout_s=timeout_s)
        return AwsLink(settings, "here", "link", stop, state=tmp_path / "state")

    core.silent = True

    def stop_once_asked() -> None:
        eventually(lambda: core.asked)
        stop.set()

    stopper = threading.Thread(target=stop_once_asked)
    stopper.start()
    with pytest.raises(LinkDown, match="stopping"):
        link(100.0).open()
    stopper.join()
    stop.clear()
    (tmp_path / "state" / "aws" / "provisioning.json").unlink()
    broker.freeze()
    try:
        with pytest.raises(LinkDown, match="did not connect within 1 s"):
            link(1.0).open()
    finally:
        broker.thaw()


def test_settings_with_both_are_refused(keys) -> None:
    with pytest.raises(ValueError, match=r"tls.certificate: expected none with provisioning"):
        settings_for(1, keys, tls=TlsSettings(certificate="c", key="k"))
    with pytest.raises(ValueError, match=r"tls.certificate: expected a file"):
        given.AwsLink(endpoint="e")


def test_an_identity_that_was_damaged_is_a_mistake_to_mend(core, make, tmp_path) -> None:
    make().open()
    (identity(tmp_path) / "certificate.pem").write_text("gone")
    with pytest.raises(ConfigError, match=r"identity/certificate\.pem"):
        make()


def test_no_secret_is_shown(core, make, tmp_path, caplog, capsys) -> None:
    caplog.set_level(logging.DEBUG)
    core.reject["skerry"] = NO
    link = make()
    with pytest.raises(LinkDown) as no:
        link.open()
    core.reject.clear()
    link.open()
    shown = f"{no.value!r} {caplog.text} {capsys.readouterr()}"
    for secret in (
        "token-0-of-ownership",
        (identity(tmp_path) / "private.key").read_text().splitlines()[1],
        (core.signer.ca.parent / "claim.key").read_text().splitlines()[1],
    ):
        assert secret not in shown


KILLED = """
import os, sys, threading
from pathlib import Path
from skerry.settings import TlsSettings
from skerry.uplink import settings as given
from skerry.uplink.links import aws_provisioning
from skerry.uplink.links.aws import AwsLink
port, keys, state, at = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
calls = 0


def or_die(real):
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), 9)
        return real(*arguments, **options)

    return call


aws_provisioning.replace = or_die(aws_provisioning.replace)
aws_provisioning._synchronise = or_die(aws_provisioning._synchronise)
Path.rename = or_die(Path.rename)
Path.unlink = or_die(Path.unlink)
settings = given.AwsLink(
    endpoint="localhost", port=port, tls=TlsSettings(ca=str(keys / "ca.pem")), timeout_s=5.0,
    provisioning=given.Provisioning(
        template="skerry", claim_certificate=str(keys / "claim.pem"), claim_key=str(keys / "claim.key"),
        parameters={"SerialNumber": "7"},
    ),
)
link = AwsLink(settings, "here", "link", threading.Event(), state=state)
link.open()
link.close()
print("done", calls)
"""


@pytest.mark.parametrize("at", range(1, 16))
def test_killed_at_any_point_there_is_a_whole_identity_or_none_and_few_certificates(
    core, broker, make, tmp_path, at
) -> None:
    keys = core.signer.ca.parent
    state = tmp_path / "state"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(broker.port), str(keys), str(state), str(at)],
        capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(needs.ROOT / "tests")},
    )  # fmt: skip
    assert done.returncode in {0, -signal.SIGKILL}, done.stderr
    home = identity(tmp_path)
    if home.exists():
        assert sorted(path.name for path in home.iterdir()) == ["certificate.pem", "private.key", "thing"]
    note = state / "aws" / "provisioning.json"
    if not home.exists() and note.exists() and b'"made":null' in note.read_bytes():
        note.unlink()  # it would ask again in a minute
    link = make()
    link.open()
    link.send(records(1, 1))
    assert len(core.made) <= 2
    assert sorted(path.name for path in home.parent.iterdir()) == ["identity"]
    if done.returncode == 0:
        assert at > int(done.stdout.split()[-1])
