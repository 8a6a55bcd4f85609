"""What a module keeps of the settings it was told from outside, over restarts, crashes and full disks."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest

from skerry import durable
from skerry.adjuster import Adjuster
from skerry.desired import digest
from skerry.messages import Desired, Reported
from skerry.settings import LIVE, RESTART, ModuleSettings, Problem


class Odd(ModuleSettings, frozen=True, kw_only=True):
    fps: Annotated[int, LIVE] = 1
    model: Annotated[str, RESTART] = "a"
    extra: Annotated[int, LIVE] = 0


DEPLOYED = Odd(site="test", module="odd", state="x")


def check(settings: Odd) -> list[Problem]:
    return [("$.fps", "expected less than 100")] if settings.fps >= 100 else []


def wanted(version: str, **patch: Any) -> Desired:
    return Desired(module="odd", version=version, digest=digest(patch), patch=patch)


class Life:
    """One start of the module after another, on one folder."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "desired.json"
        self.adjuster = Adjuster(DEPLOYED, self.file, check)

    def again(self, deployed: Odd = DEPLOYED) -> Adjuster[Odd]:
        """Start anew; whatever was in memory is lost."""
        self.adjuster = Adjuster(deployed, self.file, check)
        return self.adjuster

    def tell(self, version: str, **patch: Any) -> Reported | None:
        """Tell it, and have the loop apply it; what it says."""
        message = wanted(version, **patch)
        made = self.adjuster.look_at(message)
        if made is not None:
            self.adjuster.applied(message, made)
        return self.adjuster.report

    @property
    def report(self) -> tuple[str, str, tuple[str, ...]]:
        said = self.adjuster.report
        assert said is not None
        return said.version, said.state, said.restart

    @property
    def now(self) -> Odd:
        return self.adjuster.now


@pytest.fixture
def life(tmp_path: Path) -> Life:
    return Life(tmp_path)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the disk is full: append to it."""
    full: list[bool] = []
    real = durable.replace

    def replace(path: Path, content: bytes, mode: int = 0o600) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, content, mode)

    monkeypatch.setattr(durable, "replace", replace)
    return full


class TestLive:
    def test_without_anything_desired_it_goes_by_what_was_deployed_and_says_nothing(self, life):
        assert life.now == DEPLOYED
        assert life.adjuster.report is None
        assert not life.file.exists()

    def test_the_loop_is_given_only_what_changes_something(self, life):
        assert life.adjuster.look_at(wanted("1", fps=5)).live.fps == 5
        assert life.now.fps == 1
        assert life.adjuster.look_at(wanted("2")) is None
        assert life.report == ("2", "applied", ())

    def test_what_was_applied_counts_over_a_restart_with_nobody_there(self, life):
        life.tell("1", fps=5)
        life.again()
        assert life.now.fps == 5
        assert life.report == ("1", "applied", ())
        life.tell("2")
        life.again()
        assert life.now == DEPLOYED
        assert life.report == ("2", "applied", ())

    def test_the_same_again_is_told_by_its_new_version_and_applied_by_nobody(self, life):
        life.tell("1", fps=5)
        assert life.adjuster.look_at(wanted("2", fps=5)) is None
        assert life.report == ("2", "applied", ())
        life.again()
        assert life.report == ("2", "applied", ())

    def test_the_same_again_costs_no_write(self, life):
        life.tell("1", fps=5)
        before = life.file.stat().st_ino
        life.tell("1", fps=5)
        assert life.file.stat().st_ino == before

    def test_a_digest_that_lies_is_not_believed(self, life):
        life.tell("1", fps=5)
        lie = Desired(module="odd", version="2", digest=digest({"fps": 5}), patch={"fps": 6})
        assert life.adjuster.look_at(lie).live.fps == 6

    @pytest.mark.parametrize("patch", [{"fps": 100}, {"fps": "x"}, {"site": "other"}, {"nothing": 1}])
    def test_what_will_not_do_is_refused_and_what_counted_goes_on(self, life, patch):
        life.tell("1", fps=5)
        said = life.tell("2", **patch)
        assert said.state == "refused"
        assert all(error.startswith("modules.odd.") for error in said.errors)
        assert life.now.fps == 5
        life.again()
        assert life.now.fps == 5
        assert life.report == ("1", "applied", ())

    def test_going_back_after_a_refusal_is_told(self, life):
        life.tell("1", fps=5)
        life.tell("2", fps=100)
        assert life.adjuster.look_at(wanted("1", fps=5)) is None
        assert life.report == ("1", "applied", ())

    def test_what_the_loop_refuses_changes_nothing(self, life):
        life.tell("1", fps=5)
        message = wanted("2", fps=6)
        assert life.adjuster.look_at(message) is not None
        life.adjuster.refused(message, ["no"])
        assert life.now.fps == 5
        assert life.report == ("2", "refused", ())
        life.again()
        assert life.now.fps == 5

    def test_a_refusal_is_bounded(self, life):
        life.adjuster.refused(wanted("1"), ["x" * 10_000] * 1000)
        assert len(msgspec.json.encode(life.adjuster.report)) < 25_000


class TestTrial:
    def test_a_setting_that_waits_counts_after_a_restart(self, life):
        life.tell("1", model="b", fps=5)
        assert (life.now.model, life.now.fps) == ("a", 5)
        assert life.report == ("1", "applied", ("model",))
        assert not life.adjuster.on_trial
        life.again()
        assert life.adjuster.on_trial
        assert life.now.model == "b"
        assert life.adjuster.report is None  # it is not known yet
        life.adjuster.ready()
        assert not life.adjuster.on_trial
        assert life.report == ("1", "applied", ())
        life.again()
        assert life.now.model == "b"
        assert not life.adjuster.on_trial

    def test_three_starts_without_becoming_ready_are_enough(self, life):
        life.tell("1", fps=5)
        life.tell("2", model="b")
        for _ in range(3):
            life.again()
            assert (life.now.model, life.now.fps) == ("b", 1)
            assert life.adjuster.on_trial
        life.again()
        assert (life.now.model, life.now.fps) == ("a", 5)
        assert not life.adjuster.on_trial
        assert life.report == ("2", "refused", ())
        assert life.adjuster.report.errors == ("the module did not become ready with it in 3 starts",)

    def test_a_wrong_start_ends_the_trial_at_once_and_the_next_one_tells(self, life):
        life.tell("1", model="b")
        life.again()
        life.adjuster.failed("b: no such package")
        assert not life.adjuster.on_trial
        life.again()
        assert life.now == DEPLOYED
        assert life.report == ("1", "refused", ())
        assert life.adjuster.report.errors == ("the module did not start with it: b: no such package",)

    def test_what_failed_is_not_tried_again_however_often_it_is_said(self, life):
        life.tell("1", model="b")
        life.again()
        life.adjuster.failed("no")
        for _ in range(3):
            life.again()
            assert life.tell("1", model="b").state == "refused"
            assert life.now == DEPLOYED
            assert not life.adjuster.on_trial

    def test_a_new_version_of_what_failed_is_tried_again(self, life):
        life.tell("1", model="b")
        life.again()
        life.adjuster.failed("no")
        life.again()
        assert life.tell("2", model="b").restart == ("model",)
        life.again()
        assert life.adjuster.on_trial

    def test_on_other_deployed_settings_what_failed_is_tried_again(self, life):
        life.tell("1", model="b")
        life.again()
        life.adjuster.failed("no")
        life.again(msgspec.structs.replace(DEPLOYED, state="elsewhere"))
        assert life.adjuster.report is None
        assert life.tell("1", model="b").restart == ("model",)

    def test_the_repeated_message_of_the_broker_does_not_end_a_trial(self, life):
        life.tell("1", fps=5)
        life.tell("2", model="b")
        life.again()
        life.tell("2", model="b")
        assert life.adjuster.on_trial
        assert life.adjuster.report is None
        life.adjuster.failed("no")
        life.again()
        assert (life.now.model, life.now.fps) == ("a", 5)

    def test_a_live_change_during_a_trial_does_not_end_it(self, life):
        life.tell("1", model="b")
        life.again()
        life.tell("2", model="b", fps=7)
        assert life.now.fps == 7
        assert life.adjuster.on_trial
        assert life.adjuster.report is None
        life.adjuster.failed("no")
        life.again()
        assert life.now == DEPLOYED
        assert life.report == ("2", "refused", ())

    def test_a_live_change_during_a_trial_is_good_with_it(self, life):
        life.tell("1", model="b")
        life.again()
        life.tell("2", model="b", fps=7)
        life.adjuster.ready()
        assert life.report == ("2", "applied", ())
        life.again()
        assert (life.now.model, life.now.fps) == ("b", 7)

    def test_something_newer_waits_for_the_end_of_a_trial(self, life):
        life.tell("1", model="b")
        life.again()
        assert life.tell("2", model="c").restart == ("model",)
        assert life.adjuster.on_trial
        life.adjuster.failed("no b")
        life.again()
        assert life.now.model == "c"
        life.adjuster.failed("no c")
        life.again()
        assert life.now == DEPLOYED
        assert life.report == ("2", "refused", ())

    def test_a_trial_that_went_well_is_what_the_newer_one_goes_back_to(self, life):
        life.tell("1", model="b")
        life.again()
        life.tell("2", model="c")
        life.adjuster.ready()
        assert life.report == ("2", "applied", ("model",))
        life.again()
        assert life.now.model == "c"
        life.adjuster.failed("no c")
        life.again()
        assert life.now.model == "b"

    def test_what_waits_can_be_taken_back(self, life):
        life.tell("1", model="b")
        life.tell("2")
        assert life.report == ("2", "applied", ())
        life.again()
        assert life.now == DEPLOYED
        assert not life.adjuster.on_trial

    def test_going_back_to_what_was_deployed_waits_and_is_tried_too(self, life):
        life.tell("1", model="b")
        life.again()
        life.adjuster.ready()
        assert life.tell("2").restart == ("model",)
        life.again()
        assert life.adjuster.on_trial
        assert life.now == DEPLOYED
        life.adjuster.ready()
        assert life.report == ("2", "applied", ())

    def test_ready_and_failed_without_a_trial_do_nothing(self, life):
        life.tell("1", fps=5)
        life.adjuster.ready()
        life.adjuster.failed("later")
        assert life.report == ("1", "applied", ())
        life.again()
        assert life.now.fps == 5


class TestDeployedAnew:
    def test_a_patch_that_still_fits_is_on_the_new_settings(self, life):
        life.tell("1", fps=5)
        life.again(msgspec.structs.replace(DEPLOYED, extra=9))
        assert (life.now.fps, life.now.extra) == (5, 9)

    def test_a_patch_that_does_not_fit_any_more_is_refused_and_the_module_starts_as_deployed(self, life):
        class Other(ModuleSettings, frozen=True, kw_only=True):
            fps: int = 3

        life.tell("1", fps=5)
        deployed = Other(site="test", module="odd", state="x")
        for _ in range(2):
            again = Adjuster(deployed, life.file)
            assert again.now == deployed
            assert (again.report.version, again.report.state) == ("1", "refused")
            assert again.look_at(wanted("1", fps=5)) is None
            assert again.report.errors[0].startswith("modules.odd.fps: expected a setting that may be")

    def test_a_trial_that_does_not_fit_leaves_what_is_good(self, life):
        life.tell("1", fps=5)
        life.tell("2", model="b", extra=1)

        class Other(ModuleSettings, frozen=True, kw_only=True):
            fps: Annotated[int, LIVE] = 3
            model: str = "a"

        again = Adjuster(Other(site="test", module="odd", state="x"), life.file)
        assert again.now.fps == 5
        assert (again.report.version, again.report.state) == ("2", "refused")

    def test_deployed_settings_that_are_wrong_are_for_the_module_to_say(self, tmp_path):
        wrong = msgspec.structs.replace(DEPLOYED, fps=100)
        assert Adjuster(wrong, tmp_path / "desired.json", check).now == wrong


class TestDisk:
    @pytest.mark.parametrize(
        "content",
        [
            b"", b"{", b"null", b"[]", b'{"good": 7}', b"\x00" * 4096, b'{"good": {"patch": []}}',
            b'{"good": {"version": "1", "patch": {"fps": "x"}}}', b'{"good": {"version":"1"}, "starts": "x"}',
            b"\xff\xfe",
            b'{"good": {"patch": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}}",
            b" " * 2_000_000 + b"{}",
        ],
    )  # fmt: skip
    def test_a_file_that_is_torn_or_wrong_counts_for_nothing_and_stops_nobody(self, life, content):
        life.tell("1", fps=5)
        life.file.write_bytes(content)
        life.again()
        assert life.now == DEPLOYED
        assert life.tell("2", fps=6).state == "applied"
        life.again()
        assert life.now.fps == 6

    def test_every_cut_of_the_file_is_the_whole_of_it_or_nothing(self, life):
        life.tell("1", fps=5)
        life.tell("2", fps=5, model="b")
        whole = life.file.read_bytes()
        for end in range(len(whole)):
            life.file.write_bytes(whole[:end])
            assert life.again().now == DEPLOYED

    def test_a_folder_in_the_place_of_the_file_stops_nobody(self, life):
        life.file.mkdir()
        life.again()
        assert life.tell("1", fps=5).state == "applied"
        assert life.now.fps == 5

    def test_what_a_full_disk_does_not_take_counts_until_the_next_start(self, life, disk):
        life.tell("1", fps=5)
        disk.append(True)
        life.tell("2", fps=6)
        assert life.now.fps == 6
        assert life.report == ("2", "applied", ())
        life.again()
        assert life.now.fps == 5

    def test_a_start_that_cannot_be_counted_tries_nothing(self, life, disk):
        life.tell("1", model="b", fps=5)
        disk.append(True)
        for _ in range(5):
            life.again()
            assert (life.now.model, life.now.fps) == ("a", 5)
            assert not life.adjuster.on_trial
            assert life.report == ("1", "applied", ("model",))
        disk.clear()
        life.again()
        assert life.adjuster.on_trial
        assert life.now.model == "b"
        assert life.now.fps == 5

    def test_a_trial_that_does_not_fit_any_more_is_refused_with_the_disk_full_too(self, life, disk):
        life.tell("1", fps=98)
        life.tell("2", model="b", fps=99)
        disk.append(True)
        again = Adjuster(DEPLOYED, life.file, lambda s: [("$.fps", "no")] if s.fps == 99 else [])
        assert (again.now.model, again.now.fps) == ("a", 98)
        assert again.report.errors == ("modules.odd.fps: no",)

    def test_a_trial_that_fails_with_the_disk_full_ends_after_a_few_starts(self, life, disk):
        life.tell("1", model="b")
        life.again()
        disk.append(True)
        life.adjuster.failed("no")
        life.again()
        assert life.now == DEPLOYED
        disk.clear()
        starts = 0
        while life.again().on_trial:
            starts += 1
            life.adjuster.failed("no")
        assert starts <= 2
        assert life.now == DEPLOYED

    def test_nothing_but_the_file_is_left_behind(self, life):
        for n in range(20):
            life.tell(str(n), fps=n)
        assert [path.name for path in life.file.parent.iterdir()] == ["desired.json"]
