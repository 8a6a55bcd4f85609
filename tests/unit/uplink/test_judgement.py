"""What becomes of a desired state: judged whole, given to the modules, taken back whole."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from skerry.desired import digest
from skerry.messages import Desired, Device, Inventory, Reported
from skerry.uplink.downlink import Proposal
from skerry.uplink.judgement import Judgement, Memory, Wanted, fitted

CAMERA = {"name": "gate", "source": {"kind": "synthetic"}}
RULE = {"kind": "line", "name": "counter", "camera": "gate", "line": [[0.5, 0.0], [0.5, 1.0]]}
DEPLOYED: dict[str, dict[str, Any]] = {
    "capture": {"cameras": [CAMERA]},
    "decision": {"cameras": ["gate"], "rules": [RULE]},
    "inference": {"frames": "f", "models": [{"package": "parts"}]},
    "buffer": {},
    "uplink": {"link": {"kind": "file", "path": "events.jsonl"}},
}


def inventory(module: str, kind: str = "", **settings: Any) -> Inventory:
    kind = kind or module
    shared = {"site": "here", "module": module, "state": "s"}
    return Inventory(
        module=module, kind=kind, version="1", python="3", device=Device(machine="m"),
        settings={**shared, **DEPLOYED.get(kind, {}), **settings},
    )  # fmt: skip


def made(memory: Memory | None = None, settled_by: float = 0.0) -> Judgement:
    judgement = Judgement(memory or Memory(), settled_by)
    for module in DEPLOYED:
        judgement.heard(inventory(module))
    return judgement


def propose(judgement: Judgement, version: int, modules: Any, source: str = "twin") -> list[Desired]:
    judgement.propose(Proposal(source, str(version), {"modules": modules}))
    return judgement.step(0.0)


def answer(judgement: Judgement, *messages: Desired, **more: Any) -> None:
    for message in messages:
        said = {"state": "applied", **more}
        judgement.reported(
            Reported(module=message.module, version=message.version, digest=message.digest, **said)
        )


def test_a_valid_state_is_given_to_every_module_with_its_own_part() -> None:
    judgement = made()
    sent = propose(judgement, 7, {"capture": {"cameras": {"gate": {"fps": 5}}}})
    assert {m.module: m.patch for m in sent} == {
        name: ({"cameras": {"gate": {"fps": 5}}} if name == "capture" else {}) for name in DEPLOYED
    }
    assert {m.version for m in sent} == {"twin/7"}
    assert judgement.document() == {"version": "twin/7", "state": "applying", "waiting_for": ["capture"]}


def test_it_is_applied_once_every_module_that_it_names_says_so() -> None:
    judgement = made()
    sent = propose(judgement, 7, {"capture": {"log_level": "debug"}, "buffer": {"backlog_s": 3}})
    by_name = {m.module: m for m in sent}
    answer(judgement, by_name["capture"])
    assert judgement.document()["waiting_for"] == ["buffer"]
    answer(judgement, by_name["buffer"])
    assert judgement.document() == {"version": "twin/7", "state": "applied"}


@pytest.mark.parametrize(
    ("modules", "error"),
    [
        ({"captur": {}}, "modules.captur: no such module on this site (known: buffer, capture"),
        ({"capture": {"cameras": {"gate": {"fps": -1}}}}, "modules.capture.cameras.gate.fps: expected"),
        ({"capture": {"cameras": {"gates": {"fps": 1}}}}, "modules.capture.cameras.gates.source: expected"),
        ({"capture": {"state": "/etc"}}, "modules.capture.state: expected a setting that may be"),
        ({"uplink": {"link": {"path": "x"}}}, "modules.uplink.link.path: expected a setting that may be"),
        ({"decision": {"rules": {"counter": {"camera": "yard"}}}}, "rules.counter.camera: unknown camera"),
        ({"decision": {"rules": {"counter": {"nonsense": 1}}}}, "rules.counter.nonsense: unknown key"),
        ({"capture": 3}, "modules.capture: expected a mapping"),
        ([], "modules: expected a mapping"),
    ],
)  # fmt: skip
def test_a_bad_state_is_refused_whole_and_the_old_one_goes_on(modules: Any, error: str) -> None:
    judgement = made()
    before = propose(judgement, 1, {"buffer": {"backlog_s": 3}})
    answer(judgement, *before)
    wrong = {"buffer": {"backlog_s": 4}, **modules} if isinstance(modules, dict) else modules
    assert propose(judgement, 2, wrong) == []
    told = judgement.document()
    assert (told["version"], told["state"], told["counts"]) == ("twin/2", "refused", "twin/1")
    assert any(error in text for text in told["errors"]), told["errors"]
    assert judgement.memory.current.patch("buffer") == {"backlog_s": 3}


@pytest.mark.parametrize("document", [None, 3, "text", [], {"modulse": {}}, {"modules": {"a b": {}}}])
def test_what_is_no_desired_state_is_refused(document: Any) -> None:
    judgement = made()
    judgement.propose(Proposal("topic", "ab", document))
    assert judgement.step(0.0) == []
    assert judgement.document()["state"] == "refused"
    assert judgement.document()["version"] == "topic/ab"


def test_every_error_is_told_at_once_up_to_a_bound() -> None:
    judgement = made()
    propose(judgement, 1, {"capture": {"cameras": {"gate": {"fps": -1, "late_s": 0}}, "a": 1, "b": 2}})
    assert len(judgement.document()["errors"]) == 4
    propose(judgement, 2, {"capture": {str(n): n for n in range(500)}})
    assert len(judgement.document()["errors"]) == 20
    assert judgement.document()["errors"][-1].endswith(" more")


def test_a_state_that_nests_without_end_is_refused() -> None:
    document: dict[str, Any] = {}
    for _ in range(10_000):
        document = {"modules": document}
    judgement = made()
    judgement.propose(Proposal("topic", "1", document))
    judgement.step(0.0)
    assert "levels" in judgement.document()["errors"][0]


def test_a_module_that_refuses_takes_the_whole_state_back() -> None:
    judgement = made()
    first = propose(judgement, 1, {"buffer": {"backlog_s": 3}})
    answer(judgement, *first)
    second = propose(
        judgement, 2, {"buffer": {"backlog_s": 4}, "inference": {"models": {"0": {"package": "x"}}}}
    )
    by_name = {m.module: m for m in second}
    answer(judgement, by_name["buffer"])
    answer(judgement, by_name["inference"], state="refused", errors=("x: no such package",))
    back = {m.module: m for m in judgement.step(0.0)}
    assert back["buffer"].patch == {"backlog_s": 3}
    assert back["inference"].patch == {}
    assert {m.version for m in back.values()} == {"twin/1"}
    told = judgement.document()
    assert (told["version"], told["state"], told["counts"]) == ("twin/2", "refused", "twin/1")
    assert told["errors"] == ["x: no such package"]


def test_a_refused_state_is_not_tried_again_when_the_platform_repeats_it() -> None:
    judgement = made()
    sent = propose(judgement, 2, {"inference": {"models": {"0": {"package": "x"}}}})
    answer(judgement, *sent, state="refused", errors=("no",))
    judgement.step(0.0)
    assert propose(judgement, 2, {"inference": {"models": {"0": {"package": "x"}}}}) == []
    assert judgement.document()["state"] == "refused"
    later = made(judgement.memory)
    later.step(0.0)
    assert propose(later, 2, {"inference": {"models": {"0": {"package": "x"}}}}) == []


def test_a_refused_state_is_judged_again_when_a_module_was_deployed_anew() -> None:
    judgement = made()
    propose(judgement, 2, {"capture": {"cameras": {"yard": {"fps": 3}}}})
    assert judgement.document()["state"] == "refused"
    yard = {**CAMERA, "name": "yard"}
    judgement.heard(inventory("capture", cameras=[CAMERA, yard]))
    assert [m.version for m in judgement.step(0.0)] == ["twin/2"] * len(DEPLOYED)
    assert judgement.document()["state"] == "applying"


def test_one_that_nobody_confirmed_is_not_what_is_gone_back_to() -> None:
    judgement = made()
    answer(judgement, *propose(judgement, 1, {"buffer": {"backlog_s": 1}}))
    propose(judgement, 2, {"buffer": {"backlog_s": 2}})  # never confirmed
    third = propose(judgement, 3, {"buffer": {"backlog_s": 3}})
    answer(judgement, *(m for m in third if m.module == "buffer"), state="refused")
    assert judgement.memory.current.patch("buffer") == {"backlog_s": 1}


def test_where_the_one_before_is_refused_too_the_modules_are_as_deployed() -> None:
    judgement = made()
    answer(judgement, *propose(judgement, 1, {"buffer": {"backlog_s": 1}}))
    second = propose(judgement, 2, {"buffer": {"backlog_s": 2}})
    answer(judgement, *(m for m in second if m.module == "buffer"), state="refused", errors=("two",))
    back = [m for m in judgement.step(0.0) if m.module == "buffer"]
    assert back[0].patch == {"backlog_s": 1}
    answer(judgement, *back, state="refused", errors=("one",))
    back = [m for m in judgement.step(0.0) if m.module == "buffer"]
    assert back[0].patch == {}
    answer(judgement, *back, state="refused", errors=("none",))
    assert judgement.step(0.0) == []
    assert judgement.document()["version"] == "twin/2"
    assert judgement.document()["errors"] == ["two"]


def test_a_module_that_is_still_starting_is_waited_for() -> None:
    judgement = Judgement(Memory(), settled_by=15.0)
    judgement.heard(inventory("buffer"))
    judgement.propose(Proposal("twin", "1", {"modules": {"capture": {"log_level": "debug"}}}))
    assert judgement.step(3.0) == []
    assert judgement.document() == {"version": "", "state": "waiting", "waiting_for": ["capture"]}
    judgement.heard(inventory("capture"))
    assert [m.module for m in judgement.step(4.0)] == ["buffer", "capture"]


def test_a_module_that_comes_late_makes_a_refused_state_count() -> None:
    judgement = Judgement(Memory(), settled_by=15.0)
    judgement.heard(inventory("buffer"))
    judgement.propose(Proposal("twin", "1", {"modules": {"capture": {"log_level": "debug"}}}))
    judgement.step(16.0)
    assert judgement.document()["state"] == "refused"
    judgement.heard(inventory("capture"))
    judgement.step(17.0)
    assert judgement.document()["state"] == "applying"


def test_what_counts_outlives_the_process() -> None:
    judgement = made()
    answer(judgement, *propose(judgement, 1, {"buffer": {"backlog_s": 1}}))
    memory = msgspec.json.decode(msgspec.json.encode(judgement.memory), type=Memory)
    later = Judgement(memory, 0.0)
    later.heard(inventory("buffer"))
    assert [m.patch for m in later.step(0.0)] == [{"backlog_s": 1}]


def test_a_module_that_comes_back_is_told_again() -> None:
    judgement = made()
    propose(judgement, 1, {"buffer": {"backlog_s": 1}})
    judgement.heard(inventory("buffer"))
    assert [m.module for m in judgement.step(0.0)] == ["buffer"]


def test_a_report_about_another_version_counts_for_nothing() -> None:
    judgement = made()
    propose(judgement, 2, {"buffer": {"backlog_s": 2}})
    patch = {"backlog_s": 2}
    for version, told in (("twin/1", digest(patch)), ("twin/2", digest({}))):
        judgement.reported(
            Reported(module="buffer", version=version, digest=told, state="refused", errors=("old",))
        )
    assert judgement.document() == {"version": "twin/2", "state": "applying", "waiting_for": ["buffer"]}


def test_what_needs_a_restart_is_told() -> None:
    judgement = made()
    sent = propose(judgement, 1, {"inference": {"models": {"0": {"threads": 2}}}})
    answer(judgement, *(m for m in sent if m.module == "inference"), restart=("models.0.threads",))
    told = judgement.document()
    assert told == {"version": "twin/1", "state": "applied", "restart": {"inference": ["models.0.threads"]}}


def test_of_many_states_only_the_last_is_judged() -> None:
    judgement = made()
    for version in range(1000):
        judgement.propose(Proposal("twin", str(version), {"modules": {"buffer": {"backlog_s": version + 1}}}))
    sent = judgement.step(0.0)
    assert {m.version for m in sent} == {"twin/999"}
    assert len(sent) == len(DEPLOYED)


def test_no_more_modules_are_remembered_than_a_site_has() -> None:
    judgement = Judgement(Memory(), 0.0)
    for n in range(1000):
        judgement.heard(inventory(f"m{n}", "buffer"))
    assert len(judgement.inventories) == 64


def test_a_report_is_shortened_until_it_fits() -> None:
    document = {
        "site": "here",
        "desired": {"version": "twin/1", "state": "refused", "errors": ["x" * 300] * 20},
        "modules": {f"m{n}": {"state": "degraded", "reason": "y" * 200} for n in range(64)},
    }
    told = fitted(document, 8000)
    assert len(msgspec.json.encode(told)) <= 8000
    assert told["desired"]["state"] == "refused"
    assert fitted({"site": "here"}, 8000) == {"site": "here"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON)
def test_no_document_makes_it_fail(document: Any) -> None:
    judgement = made()
    judgement.propose(
        Proposal("topic", "1", {"modules": {"capture": document, "decision": {"rules": document}}})
    )
    judgement.step(0.0)
    judgement.propose(Proposal("topic", "2", document))
    judgement.step(0.0)
    judgement.document()


class Machine(RuleBasedStateMachine):
    """Modules that apply, refuse, vanish and come back; a platform that changes its mind."""

    def __init__(self) -> None:
        super().__init__()
        self.judgement = made()
        self.version = 0
        self.told: dict[str, Desired] = {}
        self.good: list[Wanted] = [Wanted()]

    def _listen(self) -> None:
        for message in self.judgement.step(0.0):
            self.told[message.module] = message

    @rule(backlog=st.sampled_from([1, 2, -1]), fps=st.sampled_from([None, 5, 0]))
    def desire(self, backlog: int, fps: int | None) -> None:
        self.version += 1
        modules: dict[str, Any] = {"buffer": {"backlog_s": backlog}}
        if fps is not None:
            modules["capture"] = {"cameras": {"gate": {"fps": fps}}}
        before = self.judgement.memory.current
        self.judgement.propose(Proposal("twin", str(self.version), {"modules": modules}))
        self._listen()
        if backlog < 0 or fps == 0:
            assert self.judgement.memory.current == before
            assert self.judgement.verdict == "refused"

    @rule(module=st.sampled_from(["buffer", "capture"]), state=st.sampled_from(["applied", "refused"]))
    def say(self, module: str, state: Any) -> None:
        if module in self.told:
            answer(self.judgement, self.told[module], state=state)
            self._listen()

    @rule(module=st.sampled_from(["buffer", "capture"]))
    def come_back(self, module: str) -> None:
        self.judgement.heard(inventory(module))
        self._listen()
        if self.judgement.memory.current.version:
            assert self.told[module] == self.judgement.memory.current.message(module)

    @rule()
    def restart(self) -> None:
        memory = msgspec.json.decode(msgspec.json.encode(self.judgement.memory), type=Memory)
        self.judgement = made(memory)
        self._listen()

    @invariant()
    def everybody_was_told_what_counts(self) -> None:
        current = self.judgement.memory.current
        for module, message in self.told.items():
            assert message == current.message(module)

    @invariant()
    def what_counts_is_valid(self) -> None:
        current = self.judgement.memory.current
        assert current.patch("buffer").get("backlog_s", 1) > 0
        assert current.patch("capture").get("cameras", {}).get("gate", {}).get("fps", 1) > 0


TestMachine = Machine.TestCase
