"""A model that is no good is offered by the updater: it does not stay, and it is said why."""

from __future__ import annotations

from pathlib import Path

import pytest

import bad_models
from bad_models import Bad, tried
from delivery import THOROUGH, balanced
from skerry import audit

RESULTS = 500 if THOROUGH else 100
SAMPLE = (
    "fast, but wrong",
    "right, but slow",
    "leaks",
    "returns NaN after",
    "long after",
    "its labels moved",
)
ALL = [
    bad
    for bad in bad_models.models(RESULTS)
    if THOROUGH or any(bad.name == name or (name in bad.name and " after" in name) for name in SAMPLE)
]


@pytest.mark.parametrize("bad", ALL, ids=[bad.name for bad in ALL])
def test_a_model_that_is_no_good_does_not_stay(tmp_path: Path, bad: Bad) -> None:
    found, device, package = tried(
        tmp_path, bad, fps=100, exchange={"shadow_frames": 20, "probation_s": 30.0}
    )
    assert bad.said in found.reason
    assert (found.step == "rolled_back", found.frames > 0) == (bad.serves, bad.serves)
    slots = device.named()
    assert (slots.current, slots.previous, slots.trial) == (None, None, None)
    assert device.results[-1].model == "tiny@1.0.0"
    assert device.results[-1].status == "ok"
    assert balanced(device.terms())
    assert "dropped/exchange" not in device.terms()
    assert audit.verify(device.path / "updater" / "audit").problems == ()
    # It is here, it is signed, it is the newest, and it is not tried again.
    device.results.clear()
    with device.on(updater={"check_s": 0.2}):
        device.frames()
        device.until(lambda: device.update().step == "refused" and len(device.results) > 10)
    assert {result.model for result in device.results} == {"tiny@1.0.0"}
    assert bad.said in device.update().reason
    assert len(device.audited("offered")) == 1
    assert package.manifest.digest in {p.name for p in (device.store / "packages").iterdir()}
