"""The way of a model to serving: whatever happens on it, one serves, and what failed is not tried again."""

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from skerry.inference.activation import (
    Activation,
    Attempts,
    Memory,
    Record,
    Watch,
    key,
    leaked,
    median_at_most,
)
from skerry.inference.agreement import Agreement

STEPS = ["offered", "compatible", "golden", "budget", "shadow", "switched", "probation", "confirmed"]


def _at(step, **changes):
    one = Activation(title="parts@2", **changes)
    while one.step != step:
        one = one.passed(f"after {one.step}")
    return one


def test_the_old_model_serves_until_the_new_one_is_switched_to():
    assert [_at(step).serving for step in STEPS] == ["old"] * 5 + ["new"] * 3


def test_nothing_serves_between_unloading_and_the_switch():
    steps = ["offered", "compatible", "unloaded", "golden", "budget", "switched", "probation", "confirmed"]
    shown = [_at(step, unloads=True).serving for step in steps]
    assert shown == ["old", "old", "none", "none", "none", "new", "new", "new"]


@pytest.mark.parametrize("step", STEPS[:5])
def test_what_fails_before_the_switch_is_refused(step):
    ended = _at(step).failed("slow")
    assert (ended.step, ended.serving, ended.said[-1]) == ("refused", "old", ("refused", "slow"))


@pytest.mark.parametrize("step", ["switched", "probation"])
def test_what_fails_after_the_switch_is_rolled_back(step):
    ended = _at(step).failed("NaN")
    assert (ended.step, ended.serving) == ("rolled_back", "old")
    assert [s for s, _ in ended.said] == [*STEPS[1 : STEPS.index(step) + 1], "rolled_back"]


def test_nothing_comes_after_the_end():
    with pytest.raises(ValueError, match="expected one that goes on, got confirmed"):
        _at("confirmed").passed("again")


class AnyRollout(RuleBasedStateMachine):
    """Versions are offered to a device again and again; some fail, and the process may die at any step."""

    @initialize()
    def start(self) -> None:
        self.serving = "v0"
        self.attempts = Attempts()
        self.now: Activation | None = None
        self.failed: set[str] = set()
        self.deaths: dict[str, int] = {}

    def _kept(self) -> Attempts:
        """As it is read back from the disk."""
        return msgspec.json.decode(msgspec.json.encode(self.attempts), type=Attempts)

    @precondition(lambda self: self.now is None)
    @rule(version=st.sampled_from(["v0", "v1", "v2"]), unloads=st.booleans(), force=st.booleans())
    def offered(self, version: str, unloads: bool, force: bool) -> None:
        objection = self.attempts.objection(version, version, version if force else "")
        barred = version in self.failed or self.deaths.get(version, 0) >= 3
        assert bool(objection) == (barred and not force)
        if not objection:
            self.attempts = self.attempts.begun(version)
            self.now = Activation(title=version, digest=version, unloads=unloads)

    @precondition(lambda self: self.now is not None)
    @rule()
    def passes(self) -> None:
        assert self.now is not None
        self.now = self.now.passed("well")
        if self.now.step == "confirmed":
            self.serving, self.attempts = self.now.title, self.attempts.ended(self.now.title, "")
            self.failed.discard(self.now.title)
            self.deaths.pop(self.now.title, None)
            self.now = None

    @precondition(lambda self: self.now is not None)
    @rule(found_out=st.booleans())
    def fails(self, found_out: bool) -> None:
        assert self.now is not None
        version, ended = self.now.title, self.now.failed("wrong")
        assert ended.ended
        assert ended.serving == "old"
        self.attempts = self.attempts.ended(version, "wrong" if found_out else None)
        self.deaths.pop(version, None)
        if found_out:
            self.failed.add(version)
        self.now = None

    @rule()
    def the_process_dies(self) -> None:
        self.attempts = self._kept()
        if self.now is not None:
            self.deaths[self.now.title] = self.deaths.get(self.now.title, 0) + 1
        self.now = None

    @invariant()
    def one_serves_or_the_gap_was_wanted(self) -> None:
        if getattr(self, "now", None) is None:
            return
        assert self.now is not None
        assert self.now.serving in ("old", "new") or self.now.unloads


TestAnyRollout = AnyRollout.TestCase
TestAnyRollout.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_of_many_versions_that_failed_the_newest_are_remembered():
    attempts = Attempts()
    for n in range(100):
        attempts = attempts.begun(f"v{n}").ended(f"v{n}", "wrong")
    assert list(attempts.failed) == [f"v{n}" for n in range(68, 100)]
    assert attempts.open == {}


def test_a_package_that_failed_on_one_runtime_may_be_tried_on_another():
    digest = "ab" * 32
    attempts = Attempts().ended(key(digest, "openvino", "cpu", None), "slow")
    told = attempts.objection(key(digest, "openvino", "cpu", None), digest, "")
    assert told == f"it failed here before: slow (set exchange.force to {digest[:12]} to try it again)"
    assert not attempts.objection(key(digest, "onnxruntime", "cpu", None), digest, "")
    assert not attempts.objection(key(digest, "openvino", "cpu", None), digest, digest[:12])


def _watched(*, count=30, failures=0, ms=5.0, agreement=None, limit=10.0, least=0.5):
    watch = Watch(limit, least)
    for n in range(count):
        watch.note("output 'out': got NaN" if n < failures else "", ms)
        watch.compared(agreement or Agreement(1, 1, 1))
    return watch


def test_a_model_that_does_well_has_nothing_against_it():
    watch = _watched()
    assert not watch.objection
    assert str(watch) == "30 results, 0 failed, 5.0 ms, agreement: 100% of 30 objects in 30 frames"


def test_failures_are_told_once_they_are_no_accident():
    assert not _watched(failures=2).objection
    assert _watched(failures=3).objection == "3 of 30 results failed, the last with output 'out': got NaN"
    assert not _watched(count=1000, failures=20).objection
    assert _watched(count=1000, failures=21).objection


def test_the_median_counts_and_not_the_tail():
    watch = _watched(count=40)
    for _ in range(30):
        watch.note("", 500.0)
    assert not watch.objection
    assert _watched(ms=11.0).objection == "expected at most 10.0 ms a frame, got 11.0"
    assert not _watched(ms=11.0, limit=None).objection
    assert not _watched(count=19, ms=11.0).objection


def test_disagreement_is_told_once_there_is_enough_to_compare():
    apart = Agreement(1, 0, 1)
    assert not _watched(count=9, agreement=apart).objection
    told = _watched(count=10, agreement=apart).objection
    assert told == "expected 50% agreement with the other model, got 0% of 10 objects in 10 frames"
    assert not _watched(agreement=apart, least=0.0).objection
    assert not _watched(agreement=Agreement(1, 0, 0)).objection


def test_the_bound_of_a_median_holds_in_nineteen_of_twenty_samples():
    import random

    draw = random.Random(7)
    held = sum(median_at_most([draw.expovariate(1) for _ in range(30)]) >= 0.6931 for _ in range(2000))
    assert 0.94 < held / 2000 < 0.98
    assert median_at_most([1, 2, 3, 4, 5]) == 5


def _grown(*mb: float, every: int = 4) -> list[tuple[int, float]]:
    """Weighed after every few results, from the first one on."""
    return [(n * every, each) for n, each in enumerate(mb)]


def test_memory_that_grows_all_the_time_has_leaked():
    grown, results = leaked(_grown(*(100 + n for n in range(40))))
    assert (grown, results) == (34.0, 136), "from the first 20 results on"


@pytest.mark.parametrize(
    "mb",
    [
        [100.0] * 40,
        [100.0] * 20 + [400.0] * 20,
        [100.0 + 30 * min(n / 12, 1) for n in range(40)],
        [100 + 0.3 * n for n in range(40)],
        [100 + 4.0 * n for n in range(12)],
        [100 + 4.0 * n for n in range(6)] + [120.0] * 34,
        [100 + n - 20 * (n % 2) for n in range(40)],
        [],
    ],
    ids=[
        "nothing",
        "a step",
        "a ramp that ends",
        "too little",
        "too few results",
        "warming",
        "up and down",
        "none",
    ],
)
def test_what_grows_once_or_hardly_is_no_leak(mb: list[float]):
    assert leaked(_grown(*mb)) == (0.0, 0)


def _weighed(memory: Memory, *mb: float) -> Watch:
    watch = Watch(None, 0.0, memory)
    for each in mb:
        for _ in range(4):
            watch.note("", 5.0)
        watch.weighed(each)
    return watch


def test_a_leak_beyond_the_bound_is_told_and_one_within_it_is_not():
    mb = [100.0 + n for n in range(40)]  # 250 MB in 1000 results
    assert _weighed(Memory(mb_per_1000=240), *mb).objection == (
        "expected memory to grow by at most 240 MB in 1000 results, got 250 (35 MB in 140 results)"
    )
    assert _weighed(Memory(mb_per_1000=260), *mb).objection == ""
    assert _weighed(Memory(), *mb).objection == ""


def test_what_the_budget_allows_the_process_is_told_once_it_stays_above_it():
    memory = Memory(most_mb=150)
    assert _weighed(memory, 100, 149, 150).objection == ""
    assert _weighed(memory, 151, 151).objection == ""
    assert _weighed(memory, 100, 180, 140, 180).objection == "", "for a moment"
    assert _weighed(memory, 160, 151, 170).objection == "expected the process to take at most 150 MB, got 151"


def test_what_is_weighed_takes_bounded_room_and_a_leak_is_told_all_the_same():
    watch = _weighed(Memory(mb_per_1000=10), *(100 + n / 10 for n in range(3000)))
    assert len(watch._weighed) <= 512
    assert "expected memory to grow by at most 10 MB in 1000 results, got 25" in watch.objection


def test_a_model_is_in_trouble_while_half_of_its_last_hundred_results_are_failures():
    record = Record()
    for _ in range(49):
        record.note(["", "NaN"])
    assert record.trouble == ""
    record.note(["NaN", ""])
    assert record.trouble == "50 of the last 100 results failed, the last with NaN"
    record.note([""] * 98)
    assert record.trouble, "until none of them is"
    record.note([""])
    assert record.trouble == ""
    record.note(["gone"] * 50)
    assert record.trouble == "50 of the last 100 results failed, the last with gone"
