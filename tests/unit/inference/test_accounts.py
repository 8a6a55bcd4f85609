from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from skerry.inference.accounts import Accounts
from skerry.ledger import Tally
from skerry.messages import FrameRef


def ref(number: int, ring: str = "gate.1.ring", camera: str = "gate") -> FrameRef:
    return FrameRef(
        camera=camera, number=number, time="", captured_ns=0, media_ns=0, ring=ring, slot=0, generation=2,
        width=2, height=2,
    )  # fmt: skip


@pytest.fixture
def tally(tmp_path: Path) -> Iterator[Tally]:
    with Tally(tmp_path / "tally") as one:
        yield one


def _terms(tally: Tally) -> dict[str, int]:
    return {k.removeprefix("gate/"): n for k, n in tally.snapshot().items() if n}


def test_frames_before_the_first_one_were_missed_while_away(tally: Tally) -> None:
    accounts = Accounts(tally)
    assert accounts.arrived(ref(5))
    assert _terms(tally) == {"received": 5, "dropped/restart": 4}
    assert accounts.in_hand("gate") == 1


def test_a_later_gap_was_lost_on_the_bus(tally: Tally) -> None:
    accounts = Accounts(tally)
    accounts.arrived(ref(1))
    accounts.arrived(ref(4))
    assert _terms(tally) == {"received": 4, "dropped/not_received": 2}


def test_results_are_numbered_densely_over_both_outcomes_and_restarts(tally: Tally) -> None:
    accounts = Accounts(tally)
    for number in (1, 2, 3):
        accounts.arrived(ref(number))
    assert [accounts.resolved("gate", o) for o in ("inferred", "failed", "inferred")] == [1, 2, 3]
    again = Accounts(tally)
    again.arrived(ref(4))
    assert again.resolved("gate", "inferred") == 4


def test_what_a_killed_predecessor_had_in_hand_is_counted(tally: Tally) -> None:
    before = Accounts(tally)
    for number in (1, 2, 3):
        before.arrived(ref(number))
    before.resolved("gate", "inferred")
    before.dropped("gate", "superseded")
    after = Accounts(tally)
    assert after.recover() == {"gate": 1}
    assert _terms(tally)["dropped/killed"] == 1
    assert after.recover() == {}


def test_cameras_have_accounts_of_their_own(tally: Tally) -> None:
    accounts = Accounts(tally)
    accounts.arrived(ref(1))
    accounts.arrived(ref(2, camera="hall"))
    assert accounts.in_hand("gate") == accounts.in_hand("hall") == 1
    assert tally["hall/dropped/restart"] == 1


def test_numbers_that_begin_again_keep_the_sum_right(tally: Tally) -> None:
    accounts = Accounts(tally)
    accounts.arrived(ref(1))
    accounts.arrived(ref(2))
    assert accounts.arrived(ref(2, ring="gate.2.ring"))
    assert _terms(tally) == {"base": 2, "received": 2, "dropped/not_received": 1}
    assert accounts.in_hand("gate") == 3


def test_a_new_ring_that_goes_on_counting_is_no_new_numbering(tally: Tally) -> None:
    accounts = Accounts(tally)
    accounts.arrived(ref(7))
    accounts.arrived(ref(8, ring="gate.2.ring"))
    assert tally["gate/base"] == 0
    assert tally["gate/received"] == 8


def test_the_tail_that_never_came_is_counted_once(tally: Tally) -> None:
    accounts = Accounts(tally)
    accounts.arrived(ref(1))
    assert accounts.ended("gate", 4) == 3
    assert accounts.ended("gate", 4) == 0
    assert _terms(tally) == {"received": 4, "dropped/not_received": 3}


def test_a_frame_that_comes_after_it_was_counted_as_lost_is_not_used(tally: Tally) -> None:
    accounts = Accounts(tally)
    accounts.arrived(ref(1))
    accounts.ended("gate", 4)
    assert not accounts.arrived(ref(3))
    assert accounts.arrived(ref(5))
    assert _terms(tally) == {"received": 5, "dropped/not_received": 3}


def test_a_new_numbering_after_the_tail_is_not_mistaken_for_late_frames(tally: Tally) -> None:
    accounts = Accounts(tally)
    accounts.arrived(ref(1))
    accounts.ended("gate", 4)
    assert accounts.arrived(ref(2, ring="gate.2.ring"))
    assert _terms(tally) == {"base": 4, "received": 2, "dropped/not_received": 4}


def test_a_camera_that_never_sent_a_frame_ends_with_all_of_them_missed(tally: Tally) -> None:
    accounts = Accounts(tally)
    assert accounts.ended("gate", 3) == 3
    assert _terms(tally) == {"received": 3, "dropped/restart": 3}


class AnyHistory(RuleBasedStateMachine):
    """Whatever happens, each frame that capture counted ends in exactly one term, or is still to come."""

    @initialize(folder=st.builds(lambda: None))
    def start(self, folder: None) -> None:
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.tally = Tally(Path(self.folder.name) / "tally")
        self.accounts = Accounts(self.tally)
        self.captured = 0
        self.before = 0
        self.ring = 0
        self.holding = 0

    def teardown(self) -> None:
        self.tally.close()
        self.folder.cleanup()

    @rule(lost=st.integers(0, 3))
    def frame_arrives(self, lost: int) -> None:
        self.captured += lost + 1
        assert self.accounts.arrived(ref(self.captured, f"gate.{self.ring}.ring"))
        self.holding += 1

    @rule(lost=st.integers(0, 3))
    def camera_ends(self, lost: int) -> None:
        self.captured += lost
        self.accounts.ended("gate", self.captured)

    @precondition(lambda self: self.holding)
    @rule(how=st.sampled_from(["inferred", "failed", "superseded", "frame_gone", "stopping"]))
    def one_is_resolved(self, how: str) -> None:
        self.holding -= 1
        if how in ("inferred", "failed"):
            self.accounts.resolved("gate", how)
        else:
            self.accounts.dropped("gate", how)

    @rule()
    def module_is_killed(self) -> None:
        self.tally.close()
        self.tally = Tally(Path(self.folder.name) / "tally")
        self.accounts = Accounts(self.tally)
        found = self.accounts.recover()
        assert found == ({"gate": self.holding} if self.holding else {})
        self.holding = 0

    @rule()
    def capture_restarts(self) -> None:
        self.ring += 1

    @precondition(lambda self: self.tally["gate/received"])
    @rule()
    def capture_is_wiped(self) -> None:
        """After its last frame was accounted for; then its first frame arrives."""
        self.accounts.ended("gate", self.captured)
        self.before += self.captured
        self.captured = 1
        self.ring += 1
        assert self.accounts.arrived(ref(1, f"gate.{self.ring}.ring"))
        self.holding += 1

    @invariant()
    def the_sum_holds(self) -> None:
        counts = self.tally.snapshot()
        known = counts.get("gate/base", 0) + counts.get("gate/received", 0)
        assert known == self.before + min(self.captured, counts.get("gate/received", 0))
        assert self.accounts.in_hand("gate") == self.holding
        assert all(n >= 0 for n in counts.values())


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
