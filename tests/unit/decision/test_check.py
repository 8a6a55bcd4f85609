from __future__ import annotations

import subprocess
import sys
from typing import Any

import msgspec
import pytest

from skerry.decision.check import rule_problems
from skerry.decision.settings import RULES, DecisionSettings, PresenceRule, Rule
from skerry.errors import ConfigError
from skerry.settings import convert, parse

SQUARE = [[0.1, 0.1], [0.9, 0.1], [0.9, 0.9], [0.1, 0.9]]
GATE = [[0.5, 0.0], [0.5, 1.0]]
WHERE = "$.rules[0].where.attribute"
LABELS = {"belt": ["bolt", "nut", "washer"]}


def problems(*rules: dict[str, Any]) -> list[tuple[str, str]]:
    parsed = convert(
        tuple[Rule, ...], [{"name": f"r{n}", "camera": "belt"} | r for n, r in enumerate(rules)], "t"
    )
    return rule_problems(parsed, ["belt", "gate"], LABELS, attributes_by_camera={"belt": ["defect"]})


def test_sound_rules_have_no_problem() -> None:
    assert not problems(
        {
            "kind": "presence",
            "zone": SQUARE,
            "labels": ["nut"],
            "where": {"attribute": "defect", "above": 0.5},
        },
        {"kind": "line", "line": GATE},
        {"kind": "count", "above": 3, "hysteresis": 1},
        {"kind": "rate", "below": 3},
        {"kind": "presence", "camera": "gate", "labels": ["whatever"]},
    )


@pytest.mark.parametrize(
    ("rule", "path", "words"),
    [
        ({"kind": "presence", "camera": "bell"}, "$.rules[0].camera", "'bell' (did you mean 'belt'?)"),
        ({"kind": "presence", "camera": "roof"}, "$.rules[0].camera", "(known: belt, gate)"),
        ({"kind": "presence", "labels": ["nut", "bold"]}, "$.rules[0].labels[1]", "(did you mean 'bolt'?)"),
        ({"kind": "presence", "labels": ["car"]}, "$.rules[0].labels[0]", "(known: bolt, nut, washer)"),
        ({"kind": "presence", "where": {"attribute": "defects", "above": 0}}, WHERE, "'defect'?"),
        ({"kind": "zone", "zone": [[0, 0], [1, 1], [1, 0], [0, 1]]}, "$.rules[0].zone", "edges do not cross"),
        ({"kind": "zone", "zone": [[0, 0], [0.5, 0.5], [1, 1]]}, "$.rules[0].zone", "edges do not cross"),
        ({"kind": "zone", "zone": [[0, 0], [0.001, 0], [0, 0.001]]}, "$.rules[0].zone", "got a sliver"),
        ({"kind": "line", "line": [[0.5, 0.5], [0.5, 0.5]]}, "$.rules[0].line", "two different points"),
        ({"kind": "rate", "above": 1, "line": [[0, 0], [0, 0]]}, "$.rules[0].line", "two different points"),
        ({"kind": "count"}, "$.rules[0]", "expected above or below, got neither"),
        ({"kind": "count", "above": 1, "hysteresis": 2}, "$.rules[0].hysteresis", "at most above (1), got 2"),
        ({"kind": "rate", "above": 1, "below": 2}, "$.rules[0].below", "expected at most above (1), got 2"),
    ],
)  # fmt: skip
def test_a_wrong_rule_is_named_with_its_path(rule: dict[str, Any], path: str, words: str) -> None:
    found = problems(rule)
    assert [p for p, _ in found] == [path]
    assert words in found[0][1]


def test_a_name_used_twice_is_named_with_its_first_use() -> None:
    found = problems({"kind": "absence", "after_s": 1}, {"kind": "absence", "after_s": 1, "name": "r0"})
    assert found == [("$.rules[1].name", "expected a unique name, got 'r0' as $.rules[0] (rename one)")]


def test_all_problems_come_at_once() -> None:
    assert (
        len(
            problems(
                {"kind": "count", "camera": "roof", "labels": ["car"]}, {"kind": "line", "line": [[0, 0]] * 2}
            )
        )
        == 3
    )


def test_types_are_wrong_at_the_door_with_all_their_paths() -> None:
    raw = {
        "site": "s", "module": "decision", "state": "/tmp/x", "cameras": ["belt"],
        "rules": [
            {"kind": "presence", "name": "a", "camera": "belt", "zone": [[0, 0], [1.2, 0], [1, 1]]},
            {"kind": "presense", "name": "b", "camera": "belt"},
            {"kind": "zone", "name": "c", "camera": "belt", "zone": [[0, 0], [1, 0]]},
            {"kind": "dwell", "name": "d", "camera": "belt", "longer": 3},
        ],
    }  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        parse(DecisionSettings, raw, "site.yaml")
    text = str(caught.value)
    assert "$.rules[0].zone[1][0]: expected a number from 0 to 1, got 1.2" in text
    assert "$.rules[1].kind: expected one of" in text
    assert "did you mean 'presence'?" in text
    assert "$.rules[2].zone: expected at least 3 items, got 2" in text
    assert "$.rules[3].longer: unknown key (did you mean 'longer_s'?)" in text
    assert "$.rules[3].longer_s: expected a number above 0, got nothing" in text


def test_every_rule_has_a_schema_with_its_documentation() -> None:
    _, schemas = msgspec.json.schema_components(RULES)
    for kind in RULES:
        described = schemas[kind.__name__]["description"]
        assert len(described.split()) > 20
        assert schemas[kind.__name__]["properties"]["kind"] == {"enum": [kind.__struct_config__.tag]}


def test_checking_rules_imports_neither_numpy_nor_a_bus() -> None:
    code = (
        "import sys, skerry.decision.check; print([m for m in ('numpy', 'paho', 'cv2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_of_a_rule_that_is_not_enabled_only_the_name_is_looked_at() -> None:
    wrong = PresenceRule(name="a", camera="nowhere", labels=("ghost",), enabled=False)
    assert rule_problems([wrong], ["belt"], {"belt": ["nut"]}) == []
    again = PresenceRule(name="a", camera="belt")
    assert [path for path, _ in rule_problems([wrong, again], ["belt"], {})] == ["$.rules[1].name"]
