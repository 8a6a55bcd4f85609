"""Every branch of what comes next for a slot."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from publisher import package
from skerry.messages import SlotUse
from skerry.models.slots import Slots
from skerry.trust.packages import TrustedPackage
from skerry.trust.times import Running
from skerry.updater.memory import Confirmed, Memory
from skerry.updater.rollout import Next, Scene, next_step
from skerry.updater.settings import SlotSettings

NEW = package("2.0.0")
OLD = package("1.0.0")
N = NEW.manifest.digest
O = OLD.manifest.digest  # noqa: E741 - beside N


def scene(
    slots: Slots = Slots(),  # noqa: B008 - frozen
    use: SlotUse | None = None,
    chosen: TrustedPackage | None = NEW,
    wanted: dict[str, Any] | None = None,
    **changes: Any,
) -> Scene:
    settings = SlotSettings(model="parts", **(wanted or {}))
    return Scene(wanted=settings, slots=slots, use=use, chosen=chosen, **changes)


def uses(digest: str = "", model: str = "parts@1.0.0", **changes: Any) -> SlotUse:
    return SlotUse(slot="belt", model=model, digest=digest, **changes)


# Nothing under way


def test_nothing_is_done_before_inference_has_said_what_serves():
    assert next_step(scene(here=frozenset({N}))).step == "stay"
    assert next_step(scene(Slots(current=O))) == Next("stay", reason="inference has not said yet what serves")


def test_a_newer_package_is_fetched_and_then_offered():
    assert next_step(scene(use=uses())) == Next("fetch", N)
    assert next_step(scene(use=uses(), here=frozenset({N}))) == Next("offer", N)
    assert next_step(scene(Slots(current=O), uses(O))) == Next("fetch", N)


def test_what_serves_already_is_left_alone():
    assert next_step(scene(Slots(current=N), uses(N))) == Next("stay")
    assert next_step(scene(Slots(current=O), uses(O), None)) == Next("stay")


@pytest.mark.parametrize(
    ("bundled", "step"),
    [
        ("parts@1.9.9", "fetch"), ("parts@2.0.0", "stay"), ("parts@2.0.1", "stay"),
        ("parts@2.0.0-rc.1", "fetch"), ("other@9.0.0", "fetch"), ("parts@autumn", "fetch"),
    ],
)  # fmt: skip
def test_a_bundled_package_gives_way_only_to_a_newer_one_or_to_another_model(bundled: str, step: str):
    assert next_step(scene(use=uses(model=bundled))).step == step


def test_a_version_that_is_asked_for_by_name_is_taken_be_it_older():
    asked = scene(use=uses(model="parts@3.0.0"), wanted={"version": "2.0.0"})
    assert next_step(asked) == Next("fetch", N)
    assert next_step(scene(Slots(current=N, previous=O), uses(N), OLD, here=frozenset({O}))) == Next(
        "offer", O
    )


def test_what_failed_here_is_not_tried_again_unless_it_is_forced():
    failed = {"failed": {N: "agreement"}, "here": frozenset({N})}
    assert next_step(scene(use=uses(), **failed)) == Next("stay", N, "it failed here: agreement")
    assert next_step(scene(use=uses(), wanted={"force": O[:12]}, **failed)).step == "stay"
    assert next_step(scene(use=uses(), wanted={"force": N[:12]}, **failed)) == Next("offer", N)


# A trial


TRIAL = Slots(current=O, trial=N)


def trying(step: str, attempt: int = 1, **changes: Any) -> SlotUse:
    return uses(O, offered=N, attempt=attempt, step=step, **changes)


def test_a_trial_that_is_not_desired_any_more_is_withdrawn():
    for chosen in (None, OLD):
        assert next_step(scene(TRIAL, trying("shadow"), chosen, attempt=1)).step == "withdraw"


def test_a_trial_waits_until_inference_speaks_of_it():
    assert next_step(scene(TRIAL, None, attempt=1)) == Next("wait", N)
    assert next_step(scene(TRIAL, uses(O, offered=O, step="refused", attempt=1), attempt=1)).step == "wait"
    assert next_step(scene(TRIAL, trying("shadow", reason="3 of 30"), attempt=1)) == Next(
        "wait", N, "3 of 30"
    )


def test_what_became_of_an_earlier_try_says_nothing_of_this_one():
    assert next_step(scene(TRIAL, trying("refused", attempt=1, final=True), attempt=2)).step == "wait"


def test_a_trial_is_confirmed_once_it_serves_and_inference_says_so():
    confirmed = uses(N, offered=N, attempt=1, step="confirmed", reason="all well")
    assert next_step(scene(TRIAL, confirmed, attempt=1)) == Next("confirm", N, "all well")
    # Confirmed, and another one serves since: inference was started anew, from what the store names.
    assert next_step(scene(TRIAL, trying("confirmed"), attempt=1)).step == "wait"
    # It serves on probation.
    assert next_step(scene(TRIAL, trying("probation"), attempt=1)).step == "wait"
    assert next_step(scene(TRIAL, uses(N, offered=N, attempt=1, step="probation"), attempt=1)).step == "wait"
    # The updater was started anew, and counts from nothing: what serves has proved itself all the same.
    assert next_step(scene(TRIAL, confirmed, attempt=0)).step == "confirm"


@pytest.mark.parametrize("step", ["refused", "rolled_back"])
def test_a_trial_that_fails_for_good_is_not_tried_again_and_one_that_fails_by_accident_is(step: str):
    lasting = trying(step, final=True, reason="too slow")
    assert next_step(scene(TRIAL, lasting, attempt=1)) == Next("fail", N, f"{step}: too slow")
    passing = trying(step, final=False, reason="no memory")
    assert next_step(scene(TRIAL, passing, attempt=1)) == Next("again", N, f"{step}: no memory")


# What the store names as current


def test_what_the_store_names_and_inference_does_not_serve_is_waited_for():
    assert next_step(scene(Slots(current=O), uses(N), OLD)) == Next("wait", O)


def test_what_inference_had_to_pass_over_is_healed():
    passed = uses("", passed_over="current: blob is damaged")
    assert next_step(scene(Slots(current=O), passed, OLD)) == Next("heal", O, "current: blob is damaged")
    # It is on its way already.
    offered = uses("", passed_over="current: damaged", offered=O, attempt=1, step="shadow")
    assert next_step(scene(Slots(current=O), offered, OLD, attempt=1)).step == "wait"


def test_what_is_gone_back_to_and_fails_is_healed_and_the_bundled_one_is_offered_again():
    back = uses(N, offered=O, attempt=1, step="refused", reason="damaged")
    assert next_step(scene(Slots(current=O), back, OLD, attempt=1)) == Next("heal", O, "refused: damaged")
    assert next_step(scene(Slots(current=O), back, OLD, attempt=2)).step == "wait"
    bundled = uses(N, offered="", attempt=1, step="refused", reason="no memory")
    assert next_step(scene(Slots(), bundled, None, attempt=1)) == Next("again", "", "refused: no memory")


# Drift


DRIFT = {"rollback_on_drift": True}


def test_drift_soon_after_a_package_was_confirmed_rolls_it_back_where_the_site_says_so():
    use = uses(N, drift=("brightness", "classes"))
    gone = next_step(scene(Slots(current=N, previous=O), use, wanted=DRIFT, fresh=True))
    assert gone == Next("roll_back", N, "drift soon after it was confirmed: brightness, classes")
    assert next_step(scene(Slots(current=N, previous=O), use, fresh=True)).step == "stay"
    assert next_step(scene(Slots(current=N, previous=O), use, wanted=DRIFT, fresh=False)).step == "stay"
    assert next_step(scene(Slots(current=N, previous=O), uses(N), wanted=DRIFT, fresh=True)).step == "stay"


def test_what_drifted_under_the_package_before_is_not_laid_at_the_door_of_the_next():
    slots, use = Slots(current=N, previous=O), uses(N, drift=("gate: brightness", "gate: label"))
    more = {"wanted": DRIFT, "fresh": True}
    assert next_step(scene(slots, use, drifted=("gate: brightness", "gate: label"), **more)).step == "stay"
    gone = next_step(scene(slots, use, drifted=("gate: brightness",), **more))
    assert gone == Next("roll_back", N, "drift soon after it was confirmed: gate: label")


@pytest.mark.parametrize(
    ("utc_s", "boot", "seconds", "age_s"),
    [
        (0.0, "this", 70.0, 60.0),  # whatever the wall clock says
        (1060.0, "next", 5.0, 60.0),
        (999.0, "next", 5.0, math.inf),
    ],
)
def test_how_long_ago_a_package_was_confirmed_outlives_a_restart(utc_s, boot, seconds, age_s):
    confirmed = Confirmed(digest=N, utc_s=1000.0, running=Running("this", 10.0))
    kept = msgspec.json.decode(msgspec.json.encode(confirmed), type=Confirmed)
    assert kept.age_s(utc_s, Running(boot, seconds)) == age_s


def test_what_drifts_is_remembered_until_it_is_known_that_it_does_not(tmp_path: Path) -> None:
    file = tmp_path / "updates.json"
    Memory(file).note_drift("belt", ("gate: brightness",), watched=False)
    for drift, watched, expected in (
        ((), False, ("gate: brightness",)),  # inference was started anew, and does not know yet
        (("gate: label",), True, ("gate: label",)),
        ((), True, ()),
    ):
        Memory(file).note_drift("belt", drift, watched=watched)
        assert Memory(file).drift("belt") == expected
    assert Memory(file).drift("ramp") == ()


def test_drift_of_another_package_than_the_current_one_is_not_laid_at_its_door():
    bundled = uses("", drift=("brightness",))
    assert next_step(scene(Slots(), bundled, None, wanted=DRIFT, fresh=True)) == Next("stay")
    old_one = uses(O, drift=("brightness",))
    assert next_step(scene(Slots(current=N, previous=O), old_one, wanted=DRIFT, fresh=True)).step == "wait"


def test_a_package_that_fails_soon_after_it_was_confirmed_is_gone_back_from_whatever_the_site_says():
    use = uses(N, failing="50 of the last 100 results failed")
    gone = next_step(scene(Slots(current=N, previous=O), use, fresh=True))
    assert gone == Next(
        "roll_back", N, "it fails soon after it was confirmed: 50 of the last 100 results failed"
    )
    assert next_step(scene(Slots(current=N, previous=O), use, fresh=False)).step == "stay"
    bundled = uses("", failing="all of them")
    assert next_step(scene(Slots(), bundled, None, fresh=True)).step == "stay"


def test_drift_while_another_is_on_trial_does_not_roll_back():
    use = uses(O, offered=N, attempt=1, step="shadow", drift=("brightness",))
    assert next_step(scene(TRIAL, use, wanted=DRIFT, fresh=True, attempt=1)).step == "wait"
