"""Kill -9 of the updater and of inference at every state of a delivery, as real processes on a real broker.

After it, what served serves, the store names one whole package, and what is desired comes to serve once the
process that was killed is there again.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import needs
from delivery import QUICK as EXCHANGE
from delivery import SLOT, THOROUGH, Device, Maker, Wired, balanced, wired
from skerry import audit
from skerry.broker import BrokerProcess
from skerry.testing import eventually
from skerry.trust.packages import TrustedPackage
from skerry.updater.store import Store
from tiny_models import banded_model, bright_model

pytestmark = needs.mosquitto


@pytest.fixture
def device(tmp_path: Path, shared_broker: BrokerProcess, unique_site: str) -> Iterator[Wired]:
    with wired(tmp_path / "device", shared_broker.port, unique_site) as device:
        yield device


@pytest.fixture
def maker(tmp_path: Path, device: Wired) -> Maker:
    maker = Maker(tmp_path)
    maker.publish_root(device)
    return maker


def whole(device: Device, *expected: TrustedPackage | None) -> None:
    """The store, which nobody has now, names one of these, and every byte of it is right."""
    with Store.open(device.store, bundled={SLOT: device.path / "bundled"}) as store:
        assert store.found == ()
        serving = store.resolve(SLOT)
        assert serving.passed_over == ()
        assert serving.digest in {p.manifest.digest if p else "" for p in expected}
        assert store.scrub() == ()


def died(child: subprocess.Popen[bytes], device: Device) -> None:
    assert child.wait(60) == -signal.SIGKILL, (device.path / "updater.log").read_text()[-3000:]


UPDATER = [
    "after disk create 1", "before disk write 2", "after disk sync 2", "before disk rename 1",
    "after disk rename 2", "after disk link 1", "before disk symlink 1", "after disk symlink 2",
    "before audit fetched", "after audit fetched", "before audit offered", "after audit offered",
    "before publish offers 1", "after publish offers 2",
    "before audit step compatible", "after audit step probation", "before audit step confirmed",
    "after audit step confirmed", "before audit confirmed", "after audit confirmed",
]  # fmt: skip
SAMPLED = ("before disk write 2", "before audit offered", "before audit confirmed")


@pytest.mark.timeout(600)
def test_a_kill_of_the_updater_leaves_what_serves_alone_and_what_is_desired_comes_after_it(
    device: Wired, maker: Maker
) -> None:
    serves: TrustedPackage | None = None
    with device.inferring(device.use(exchange=EXCHANGE)):
        device.frames()
        for n, moment in enumerate(UPDATER if THOROUGH else SAMPLED):
            new = maker.release(f"1.{n + 1}.0", bright_model(box=(0.5, 0.5, 0.25 + n / 1000, 0.5)))
            died(device.process("updater", moment, check_s=0.2), device)
            seen = len(device.results)
            # Killed after inference has confirmed, it serves already; the store says so later.
            device.until(lambda seen=seen: len(device.results) > seen + 3)
            assert device.use_of().digest in {p.manifest.digest if p else "" for p in (serves, new)}
            whole(device, serves, new)
            with device.updating(check_s=0.2):
                device.until(lambda new=new: device.serves(new))
                device.until(lambda: device.audited("confirmed"))
            assert audit.verify(device.path / "updater" / "audit").problems == (), moment
            serves = new
        device.still()
    assert balanced(device.terms())
    versions = [model.partition("@")[2] for model in device.models()]
    assert versions == sorted(versions, key=lambda v: int(v.split(".")[1])), "never back"


INFERENCE = [
    "before log model.step compatible", "after log model.step golden", "after log model.step budget",
    "after log model.step shadow", "after log model.step switched", "after log model.step probation",
    "after log model.step confirmed", "before publish activations 3",
]  # fmt: skip


@pytest.mark.timeout(600)
def test_a_kill_of_inference_at_any_step_brings_the_old_model_back_and_the_new_one_after_it(
    device: Wired, maker: Maker
) -> None:
    serves: TrustedPackage | None = None
    with device.updating(check_s=0.2):
        device.frames()
        for n, moment in enumerate(INFERENCE if THOROUGH else INFERENCE[4:6]):
            new = maker.release(f"1.{n + 1}.0", bright_model(box=(0.5, 0.5, 0.25 + n / 1000, 0.5)))
            died(device.process("inference", moment), device)
            assert (device.named().current or "") == (serves.manifest.digest if serves else "")
            seen = len(device.results)
            with device.inferring(device.use(exchange=EXCHANGE)):
                device.until(lambda seen=seen: len(device.results) > seen)
                first = device.results[seen].model
                assert first == (serves.title if serves else "tiny@1.0.0"), "it was not confirmed"
                device.until(lambda new=new: device.serves(new))
            serves = new
        device.still()
    whole(device, serves)
    assert audit.verify(device.path / "updater" / "audit").problems == ()
    assert balanced(device.terms())


def test_a_model_that_kills_inference_each_time_is_given_up_and_the_old_one_serves(
    device: Wired, maker: Maker
) -> None:
    evil = maker.release("1.1.0")
    with device.updating(check_s=0.2):
        device.frames()
        for moment in ("probation", "switched", "probation"):
            died(device.process("inference", f"after log model.step {moment}"), device)
            assert device.named().current is None
        with device.inferring(device.use(exchange=EXCHANGE)):
            device.until(lambda: device.audited("refused"))
            refused = device.audited("refused")[-1].fields
            assert "the process ended 3 times while it was tried" in str(refused["reason"])
            assert refused["digest"] == evil.manifest.digest
            device.until(lambda: device.serves(None))
            good = maker.release("1.2.0", bright_model(box=(0.5, 0.5, 0.251, 0.5)))
            device.until(lambda: device.serves(good))
    whole(device, good)


ROLLBACK = ["before audit step rolled_back", "before audit refused", "after audit refused"]


@pytest.mark.timeout(600)
def test_a_kill_of_the_updater_while_a_package_is_rolled_back_does_not_bring_it_back(
    device: Wired, maker: Maker
) -> None:
    exchange = {**EXCHANGE, "probation_s": 60.0}
    with device.inferring(device.use(exchange=exchange)):
        frames = device.frames()
        for n, moment in enumerate(ROLLBACK if THOROUGH else ROLLBACK[1:2]):
            frames.brightness = 0.5
            bad = maker.release(f"1.{n + 1}.0", banded_model("nan", 0.57, 0.63 + n / 1000))
            child = device.process("updater", moment, check_s=0.2)
            eventually(lambda: device.use_of().step == "probation", 60)
            frames.brightness = 0.6
            died(child, device)
            whole(device, None)
            with device.updating(check_s=0.2):
                device.until(lambda: device.update().step == "refused")
                device.until(lambda bad=bad: device.update().wanted == bad.title)
            assert device.named().trial is None
            assert [e.fields["digest"] for e in device.audited("offered")][-1] == bad.manifest.digest
        device.still()
    assert audit.verify(device.path / "updater" / "audit").problems == ()
    assert len(device.audited("confirmed")) == 0
    assert balanced(device.terms())
