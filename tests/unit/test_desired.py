"""What a desired state means: patches on settings, and which of them may come from outside."""

from __future__ import annotations

import json
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Meta

from skerry.capture.check import settings_problems as capture_problems
from skerry.capture.settings import CaptureSettings
from skerry.decision.check import settings_problems as decision_problems
from skerry.decision.settings import DecisionSettings
from skerry.desired import adjustable, adjusted, depth, digest, nothing, patched
from skerry.errors import ConfigError
from skerry.inference.settings import InferenceSettings
from skerry.settings import LIVE, RESTART, ModuleSettings, Settings, parse

ZONE = [[0.1, 0.1], [0.9, 0.1], [0.9, 0.9]]
RULES = [
    {"kind": "presence", "name": "here", "camera": "belt"},
    {"kind": "line", "name": "count", "camera": "belt", "line": [[0.5, 0], [0.5, 1]]},
]
MODULE = {"site": "test", "module": "m", "state": "x"}

DECISION = parse(DecisionSettings, {**MODULE, "cameras": ["belt"], "rules": RULES}, "t")
CAPTURE = parse(
    CaptureSettings,
    {
        **MODULE,
        "cameras": [
            {"name": "gate", "source": {"kind": "synthetic"}, "masks": [ZONE]},
            {"name": "hall", "source": {"kind": "rtsp", "url": "rtsp://me:secret@host/1"}, "fps": 5},
        ],
    },
    "t",
)
INFERENCE = parse(
    InferenceSettings,
    {**MODULE, "frames": "f", "models": [{"package": "a", "cameras": ["gate"]}, {"package": "b"}]},
    "t",
)


class Inner(Settings, frozen=True, kw_only=True):
    a: int = 1
    b: Annotated[int, RESTART] = 2


class Outer(ModuleSettings, frozen=True, kw_only=True):
    low: Annotated[int, LIVE] = 1
    high: Annotated[int, RESTART] = 2
    inner: Inner = Inner()
    maybe: Annotated[Inner | None, RESTART] = None
    names: Annotated[tuple[str, ...], LIVE] = ()
    number: Annotated[float, LIVE] = 1.0

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low: expected at most high ({self.high}), got {self.low}")


OUTER = Outer(site="test", module="m", state="x")


def decision(patch: Any, now: DecisionSettings = DECISION) -> Any:
    return adjusted(DECISION, now, patch, decision_problems, "modules.decision")


def refusal(of: Any, patch: Any, check: Any = nothing) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        adjusted(of, of, patch, check, f"modules.{of.module}")
    return caught.value.problems


class TestPatches:
    def test_a_patch_changes_what_it_names_and_null_takes_away(self):
        base = {"a": {"b": 1, "c": 2}, "d": [1, 2]}
        assert patched(base, {"a": {"b": 7, "c": None}, "d": [3], "e": {"f": None, "g": 1}}) == {
            "a": {"b": 7}, "d": [3], "e": {"g": 1},
        }  # fmt: skip
        assert base == {"a": {"b": 1, "c": 2}, "d": [1, 2]}

    @pytest.mark.parametrize(
        ("base", "patch", "result"),
        # Source: RFC 7396, appendix A, but for those whose target is a list of objects.
        [
            ({"a": "b"}, {"a": "c"}, {"a": "c"}),
            ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
            ({"a": "b"}, {"a": None}, {}),
            ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
            ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
            ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
            ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
            ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
            (["a", "b"], ["c", "d"], ["c", "d"]),
            ({"a": "b"}, ["c"], ["c"]),
            ({"a": "foo"}, None, None),
            ({"a": "foo"}, "bar", "bar"),
            ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
            ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
            ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
        ],
    )
    def test_they_are_json_merge_patches(self, base, patch, result):
        assert patched(base, patch) == result

    def test_a_list_of_named_things_is_addressed_by_name(self):
        base = [{"name": "a", "n": 1}, {"name": "b", "n": 2}]
        assert patched(base, {"b": {"n": 7}}) == [{"name": "a", "n": 1}, {"name": "b", "n": 7}]
        assert patched(base, {"a": None}) == [{"name": "b", "n": 2}]
        assert patched(base, {"c": {"n": 3}})[2] == {"name": "c", "n": 3}
        assert patched([], {"c": {"n": 3}}) == [{"name": "c", "n": 3}]

    def test_a_list_of_things_without_names_is_addressed_by_place(self):
        base = [{"n": 1}, {"n": 2}]
        assert patched(base, {"1": {"n": 7}}) == [{"n": 1}, {"n": 7}]
        assert patched(base, {"0": None}) == [{"n": 2}]
        assert patched(base, {"2": {"n": 3}}) == [{"n": 1}, {"n": 2}, {"n": 3}]

    def test_names_that_are_used_twice_address_nothing(self):
        base = [{"name": "a", "n": 1}, {"name": "a", "n": 2}]
        assert patched(base, {"1": {"n": 7}}) == [{"name": "a", "n": 1}, {"name": "a", "n": 7}]

    def test_a_digest_tells_patches_apart_whatever_the_order_of_their_keys(self):
        assert digest({"a": 1, "b": {"c": 2, "d": 3}}) == digest({"b": {"d": 3, "c": 2}, "a": 1})
        assert digest({"a": 1}) != digest({"a": 2})


class TestSettings:
    def test_an_empty_patch_is_the_module_as_deployed(self):
        for deployed in (DECISION, CAPTURE, INFERENCE, OUTER):
            assert adjusted(deployed, deployed, {}, nothing, "m") == (deployed, deployed, ())

    def test_a_rule_is_changed_added_and_removed_by_name(self):
        made = decision({"rules": {"here": {"zone": ZONE, "severity": "critical"}}})
        assert made.live.rules[0].severity == "critical"
        assert made.live.rules[1] == DECISION.rules[1]
        assert not made.restart
        made = decision({"rules": {"new": {"kind": "count", "camera": "belt", "above": 3}}})
        assert [r.name for r in made.live.rules] == ["here", "count", "new"]
        assert [r.name for r in decision({"rules": {"here": None}}).live.rules] == ["count"]
        assert decision({"rules": None}).live.rules == ()
        assert decision({"rules": RULES[1:]}).live.rules == DECISION.rules[1:]

    def test_a_patch_is_on_the_deployed_settings_whatever_counts_now(self):
        now = decision({"rules": {"here": None}, "log_level": "debug"}).live
        made = decision({"tracker": {"lost_s": 2}}, now)
        assert made.live == msgspec.structs.replace(
            DECISION, tracker=msgspec.structs.replace(DECISION.tracker, lost_s=2.0)
        )

    def test_null_is_the_default_of_the_type(self):
        made = adjusted(CAPTURE, CAPTURE, {"cameras": {"hall": {"fps": None}}}, nothing, "m")
        assert made.live.cameras[1].fps is None

    def test_what_waits_for_a_restart_is_named_and_does_not_count_yet(self):
        patch = {"models": {"1": {"device": "gpu", "score_threshold": 0.7, "batch": {"max": 4}}}}
        made = adjusted(INFERENCE, INFERENCE, patch, nothing, "m")
        assert made.restart == ("models.1.device", "models.1.batch.max")
        assert made.live.models[1].device == "cpu"
        assert made.live.models[1].score_threshold == 0.7
        assert made.whole.models[1].device == "gpu"
        made = adjusted(CAPTURE, CAPTURE, {"cameras": {"hall": {"width": 320, "fps": 3}}}, nothing, "m")
        assert made.restart == ("cameras.hall.width",)
        assert made.live.cameras[1].width is None
        assert made.live.cameras[1].fps == 3

    def test_a_setting_that_waits_and_is_taken_back_waits_no_more(self):
        now = adjusted(OUTER, OUTER, {"high": 9}, nothing, "m").live
        assert adjusted(OUTER, now, {}, nothing, "m") == (OUTER, OUTER, ())

    def test_half_a_change_that_makes_no_sense_waits_for_the_other_half(self):
        made = adjusted(OUTER, OUTER, {"low": 5, "high": 9, "names": ["a"]}, nothing, "m")
        assert made.live == OUTER
        assert set(made.restart) == {"low", "high", "names"}
        assert (made.whole.low, made.whole.high) == (5, 9)

        def check(settings):
            return [("$.low", "expected 1")] if settings.low != 1 and settings.high == 2 else []

        made = adjusted(OUTER, OUTER, {"low": 2, "high": 9}, check, "m")
        assert made.live == OUTER
        assert set(made.restart) == {"low", "high"}

    def test_a_mark_holds_for_all_that_is_inside(self):
        made = adjusted(OUTER, OUTER, {"maybe": {"a": 3}}, nothing, "m")
        assert made.restart == ("maybe",)
        assert made.live.maybe is None
        assert adjusted(OUTER, OUTER, {"inner": {"b": 3}}, nothing, "m").restart == ("inner.b",)


class TestRefusals:
    def test_what_may_not_be_changed_from_outside_is_refused_with_what_may(self):
        (problem,) = refusal(CAPTURE, {"cameras": {"gate": {"masks": []}}})
        assert problem.startswith("modules.m.cameras.gate.masks: expected a setting that may be changed from")
        (problem,) = refusal(OUTER, {"state": "/etc"})
        assert "inner.b, log_level, low" in problem
        (problem,) = refusal(OUTER, {"inner": {"a": 7}})
        assert problem.startswith("modules.m.inner.a:")

    @pytest.mark.parametrize(
        "patch",
        [
            {"site": "other"}, {"module": "other"}, {"bus": {"host": "elsewhere"}}, {"bus": {"tls": {}}},
            {"frames": "/etc"}, {"cameras": {"gate": None}}, {"cameras": {"gate": {"name": "x"}}},
            {"cameras": {"gate": {"source": {"seed": 2}}}}, {"cameras": {"gate": {"snapshots": "allowed"}}},
            {"cameras": {"gate": {"source": {"kind": "file", "path": "/etc/passwd"}}}},
            {"cameras": {"hall": {"source": {"url": "rtsp://evil/1"}}}},
            {"cameras": {"new": {"source": {"kind": "synthetic"}}}},
        ],
    )  # fmt: skip
    def test_no_patch_moves_a_module_a_camera_or_a_fixed_mask(self, patch):
        assert refusal(CAPTURE, patch)

    def test_errors_name_the_setting_as_the_patch_does(self):
        assert refusal(DECISION, {"rules": {"count": {"margin": 7}}}) == (
            "modules.m.rules.count.margin: expected a number from 0 to 0.5, got 7",
        )
        (problem,) = refusal(DECISION, {"rules": {"here": {"camera": "bell"}}}, decision_problems)
        assert problem.startswith("modules.m.rules.here.camera: unknown camera 'bell'")
        (problem,) = refusal(INFERENCE, {"models": {"1": {"runtime": "openvino", "device": "cuda"}}})
        assert problem.startswith("modules.m.models.1: device: expected one of cpu, gpu, npu")
        (problem,) = refusal(OUTER, {"low": 3})
        assert problem == "modules.m: low: expected at most high (2), got 3"

    def test_an_unknown_key_is_told_with_what_is_near(self):
        (problem,) = refusal(DECISION, {"rules": {"here": {"on_delay": 2}}})
        assert problem == "modules.m.rules.here.on_delay: unknown key (did you mean 'on_delay_s'?)"

    def test_a_rule_of_another_kind_must_not_keep_the_fields_of_the_one_before(self):
        problems = refusal(DECISION, {"rules": {"count": {"kind": "presence"}}})
        assert any(p.startswith("modules.m.rules.count.line: unknown key") for p in problems)
        gone = dict.fromkeys(("line", "direction", "margin", "once"))
        assert decision({"rules": {"count": {"kind": "presence", **gone}}}).live.rules[1].per == "zone"
        assert refusal(DECISION, {"rules": {"new": {"camera": "belt"}}})[0].startswith(
            "modules.m.rules.new.kind: expected one of presence,"
        )

    def test_all_problems_are_told_at_once_but_not_without_end(self):
        assert len(refusal(DECISION, {"rules": {"here": {"min_score": 2}, "count": {"margin": 7}}})) == 2
        many = {f"key-{n}": n for n in range(40_000)}
        assert len(refusal(DECISION, many)) == 50
        assert max(map(len, refusal(DECISION, {"x" * 100_000: 1}))) == 300


class TestHostile:
    @pytest.mark.parametrize(
        "patch",
        [
            {"number": 10**400}, {"number": 10**4200}, {"low": 10**400}, {"number": float("inf")},
            {"number": float("nan")}, {"low": True}, {"names": {"a": {}}}, {"names": [[]]},
            {"": {"": {"": 1}}}, {"inner": [1]}, {"inner": {"0": {}}}, {"low": {"low": 3}},
            {"x[" + "1" * 5000 + "]": 1},
            {"a.b": {"c[0]": 1}}, {"log_level": ["debug"]}, {"log_level": {"debug": 1}},
            {"log_level": "\ud800"},
            {"bus": None, "site": None, "module": None, "state": None},
        ],
    )  # fmt: skip
    def test_what_makes_no_sense_is_refused(self, patch):
        assert refusal(OUTER, patch)

    def test_depth_is_bounded_without_recursion(self):
        deep: Any = 1
        for _ in range(100_000):
            deep = {"a": deep}
        assert depth(deep) == 33
        (problem,) = refusal(OUTER, {"inner": deep})
        assert problem == "modules.m: expected at most 32 levels, got more"
        listed: Any = []
        for _ in range(40):
            listed = [listed]
        assert refusal(OUTER, {"names": listed}) == ("modules.m: expected at most 32 levels, got more",)

    def test_depth_counts_levels(self):
        assert [depth(d) for d in ({}, {"a": 1}, {"a": [1]}, [[], {"b": {}}])] == [1, 2, 3, 3]


KEYS = st.sampled_from(
    [
        "rules", "here", "count", "0", "1", "zone", "line", "kind", "name", "camera", "tracker", "lost_s",
        "cameras", "gate", "hall", "masks", "more_masks", "fps", "models", "package", "score_threshold",
        "batch", "max", "device", "log_level", "where", "labels", "enabled", "above", "bus", "",
    ]
)  # fmt: skip
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([*RULES, ZONE, [ZONE], "presence", "belt", "debug", "cuda", 0.5])
)
PATCHES = st.dictionaries(
    KEYS,
    st.recursive(
        LEAVES,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
        max_leaves=12,
    ),
    max_size=4,
)


@settings(max_examples=80, deadline=None)
@given(
    PATCHES,
    PATCHES,
    st.sampled_from([(DECISION, decision_problems), (CAPTURE, capture_problems), (INFERENCE, nothing)]),
)
def test_whatever_is_desired_is_refused_with_reasons_or_makes_sound_settings(first, second, module):
    deployed, check = module
    now = deployed
    for patch in (first, second, {}):
        try:
            made = adjusted(deployed, now, patch, check, "m")
        except ConfigError as error:
            refused = error.problems
        else:
            refused = ()
        assert all(p.startswith("m") and len(p) <= 300 for p in refused)
        if refused:
            continue
        # What it says survives the way to disk and back, and is sound by the types' own word.
        for found in (made.whole, made.live):
            assert parse(type(deployed), json.loads(msgspec.json.encode(found)), "t") == found
            assert not check(found)
        assert (made.whole == made.live) == (not made.restart)
        now = made.live
    assert adjusted(deployed, now, {}, check, "m").live == deployed


def test_what_may_be_changed_is_listed_by_path():
    assert [(f.path, f.change) for f in adjustable(DecisionSettings)] == [
        ("log_level", "live"),
        ("rules", "live"),
        ("tracker", "live"),
    ]
    changes = {f.path: f.change for f in (*adjustable(CaptureSettings), *adjustable(InferenceSettings))}
    assert changes["cameras.NAME.more_masks"] == "live"
    assert changes["models.NAME.package"] == "live"
    assert changes["models.NAME.device"] == "restart"
    paths = [path for path, *_ in adjustable(CaptureSettings)]
    assert "cameras.NAME.masks" not in paths
    assert len(paths) == len(set(paths))


def test_a_constraint_beside_a_mark_still_holds():
    class Rate(ModuleSettings, frozen=True, kw_only=True):
        fps: Annotated[int, Meta(ge=1, le=5), LIVE] = 1

    deployed = Rate(site="test", module="m", state="x")
    assert refusal(deployed, {"fps": 9}) == ("modules.m.fps: expected a whole number from 1 to 5, got 9",)
    assert adjusted(deployed, deployed, {"fps": 5}, nothing, "m").live.fps == 5
