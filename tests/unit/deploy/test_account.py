"""The ledger of a run: it balances when everything is accounted for, and only then."""

from pathlib import Path

import msgspec
import pytest

from needs import ROOT
from samples import SAMPLES
from skerry.deploy.account import Counts, camera_ledger, event_ledger, read_counts, settled
from skerry.deploy.plan import Place, Plan, plan
from skerry.deploy.site import load_site
from skerry.inference.accounts import Accounts
from skerry.ledger import Tally, balanced
from skerry.settings import BusSettings

NOTHING: Counts = {}


@pytest.fixture
def the_plan(tmp_path: Path) -> Plan:
    site = load_site(ROOT / "sites" / "demo.yaml")
    return plan(site, Place(state=str(tmp_path), frames="/f", output="/o", bus=BusSettings()))


def counts(**changes: dict[str, int]) -> dict[str, dict[str, int]]:
    base = {
        "capture": {"belt/captured": 100},
        "inference": {"belt/inferred": 90, "belt/failed": 2, "belt/dropped/superseded": 8},
        "decision": {"decided": 10, "unaccepted": 1},
        "buffer": {"accepted": 9, "delivered": 6, "waiting": 1, "evicted/capacity": 2},
    }
    return {module: {**terms, **changes.get(module, {})} for module, terms in base.items()}


def is_balanced(plan: Plan, before: Counts, after: Counts, *, died: bool = False) -> bool:
    camera = camera_ledger(plan, "belt", before, after, died=died)
    return balanced({"belt": camera}, event_ledger(plan, before, after))


def test_a_ledger_in_which_everything_is_accounted_for_balances(the_plan: Plan) -> None:
    assert is_balanced(the_plan, NOTHING, counts())


@pytest.mark.parametrize(
    "change",
    [
        {"capture": {"belt/captured": 101}},
        {"inference": {"belt/inferred": 89}},
        {"inference": {"belt/failed": 3}},
        {"inference": {"belt/dropped/superseded": 7}},
        {"decision": {"decided": 11}},
        {"decision": {"unaccepted": 0}},
        {"buffer": {"accepted": 10}},
        {"buffer": {"delivered": 5}},
        {"buffer": {"waiting": 0}},
        {"buffer": {"evicted/capacity": 1}},
    ],
)
def test_one_lost_or_invented_unit_in_any_term_unbalances_it(
    the_plan: Plan, change: dict[str, dict[str, int]]
) -> None:
    assert not is_balanced(the_plan, NOTHING, counts(**change))


def test_a_frame_that_inference_takes_and_forgets_unbalances_the_ledger(the_plan: Plan) -> None:
    (capture,), (inference,) = the_plan.of("capture"), the_plan.of("inference")
    with Tally(Path(capture.settings.state) / "tally") as tally:
        tally.set({"belt/captured": 3})
    with Tally(Path(inference.settings.state) / "tally") as tally:
        accounts = Accounts(tally)
        for number in (1, 2, 3):
            accounts.arrived(msgspec.structs.replace(SAMPLES["frames"], camera="belt", number=number))
        accounts.resolved("belt", "inferred")
        accounts.dropped("belt", "superseded")
        assert camera_ledger(the_plan, "belt", NOTHING, read_counts(the_plan), died=False).missing == 1
        accounts.resolved("belt", "failed")
        assert camera_ledger(the_plan, "belt", NOTHING, read_counts(the_plan), died=False).missing == 0


def test_a_run_reports_the_difference_between_its_ends(the_plan: Plan) -> None:
    after = counts(capture={"belt/captured": 150}, inference={"belt/inferred": 140})
    ledger = camera_ledger(the_plan, "belt", counts(), after, died=False)
    assert (ledger.captured, ledger.inferred, ledger.failed, ledger.dropped) == (50, 50, 0, {})


def test_frames_that_a_killed_run_left_are_accounted_for_in_the_next(the_plan: Plan) -> None:
    before = counts(inference={"belt/inferred": 87})  # three frames in its hands when everything was killed
    after = counts(inference={"belt/inferred": 87, "belt/dropped/killed": 3})
    ledger = camera_ledger(the_plan, "belt", before, after, died=False)
    assert (ledger.captured, ledger.dropped, ledger.missing) == (3, {"killed": 3}, 0)


def test_events_waiting_from_an_earlier_run_are_carried_over(the_plan: Plan) -> None:
    after = counts(decision={"unaccepted": 0}, buffer={"accepted": 10, "delivered": 8, "waiting": 0})
    events = event_ledger(the_plan, counts(), after)
    assert (events.decided, events.accepted, events.delivered, events.carried_over) == (0, 1, 2, 1)
    assert (events.missing, events.missing_after) == (0, 0)


def test_what_a_module_held_that_nobody_restarted_is_named_killed(the_plan: Plan) -> None:
    after = counts(inference={"belt/inferred": 88})
    assert camera_ledger(the_plan, "belt", NOTHING, after, died=True).dropped["killed"] == 2
    assert not is_balanced(the_plan, NOTHING, after, died=False)


def test_a_site_is_settled_when_nothing_is_on_its_way(the_plan: Plan) -> None:
    def write(found: Counts) -> None:
        for part in the_plan.parts:
            with Tally(Path(part.settings.state) / "tally") as tally:
                tally.set(found.get(part.module, {}))

    write(counts())
    assert not settled(the_plan, ["belt"], NOTHING)  # one unaccepted, one waiting
    write(counts(decision={"unaccepted": 0, "decided": 9}, buffer={"waiting": 0, "delivered": 7}))
    assert settled(the_plan, ["belt"], NOTHING)


def test_events_accepted_before_a_kill_that_no_producer_heard_of_are_not_owed_again(the_plan: Plan) -> None:
    """The buffer has counted 3 of the 5 that decision still held; the next run must not expect them twice."""
    before = {"decision": {"decided": 10, "unaccepted": 5}, "buffer": {"accepted": 8, "waiting": 8}}
    after = {"decision": {"decided": 12, "unaccepted": 0}, "buffer": {"accepted": 12, "delivered": 12}}
    events = event_ledger(the_plan, before, after)
    assert (events.missing, events.missing_after) == (0, 0)
    lost = {"decision": {"decided": 12, "unaccepted": 0}, "buffer": {"accepted": 11, "delivered": 11}}
    assert event_ledger(the_plan, before, lost).missing == 1
