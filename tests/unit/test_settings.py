# ruff: noqa: E501 - a table of whole error messages reads best unbroken
import json
import re
from typing import Annotated, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from msgspec import Meta

from skerry.errors import ConfigError
from skerry.kinds import NAMES, kind_of
from skerry.messages import Name
from skerry.settings import BusSettings, ModuleSettings, Settings, parse, parse_json, problems


class Circle(Settings, frozen=True, kw_only=True, tag_field="shape", tag="circle"):
    radius: Annotated[float, Meta(gt=0)] = 1.0


class Square(Settings, frozen=True, kw_only=True, tag_field="shape", tag="square"):
    side: float


class Camera(Settings, frozen=True, kw_only=True):
    name: Name
    fps: Annotated[float, Meta(gt=0, le=240)] = 15.0
    rotate: Literal[0, 90, 180, 270] = 0
    region: tuple[float, float, float, float] | None = None


class Sample(Settings, frozen=True, kw_only=True):
    cameras: Annotated[tuple[Camera, ...], Meta(min_length=1)] = (Camera(name="a"),)
    count: Annotated[int, Meta(ge=0, le=5)] = 1
    on: bool = False
    text: Annotated[str, Meta(min_length=1, max_length=3, pattern="^[a-z]*$")] = "a"
    pair: tuple[float, float] = (0.0, 0.0)
    table: dict[str, int] = {}  # noqa: RUF012 - msgspec copies it
    figure: Circle | Square | None = None
    choice: Literal["p", "q", 1] | None = None
    number_or_text: int | str | None = None
    text_or_list: str | list[int] = ""
    labels: frozenset[str] = frozenset()


def wrong(raw: object, kind: type = Sample) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(kind, raw, "site.yaml")
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        ({"cameras": [{"name": "g", "fps": -5}]}, "$.cameras[0].fps: expected a number above 0 and at most 240, got -5"),
        ({"cameras": [{"name": "g", "fps": "15"}]}, '$.cameras[0].fps: expected a number above 0 and at most 240, got "15"'),
        ({"cameras": [{"name": "g", "fps": True}]}, "$.cameras[0].fps: expected a number above 0 and at most 240, got true"),
        ({"cameras": [{"name": "a b"}]}, '$.cameras[0].name: expected a name (letters, digits, - and _; at most 64), got "a b"'),
        ({"cameras": [{"name": "a\n"}]}, '$.cameras[0].name: expected a name (letters, digits, - and _; at most 64), got "a\\n"'),
        ({"cameras": [{}]}, "$.cameras[0].name: expected a name (letters, digits, - and _; at most 64), got nothing (add it)"),
        ({"cameras": [{"name": "g", "rotate": 45}]}, "$.cameras[0].rotate: expected one of 0, 90, 180, 270, got 45"),
        ({"cameras": [{"name": "g", "region": [1, 2, 3]}]}, "$.cameras[0].region: expected a list of 4, got [1, 2, 3]"),
        ({"cameras": [{"name": "g", "fsp": 5}]}, "$.cameras[0].fsp: unknown key (did you mean 'fps'?)"),
        ({"cameras": [{"name": "g", "zzz": 5}]}, "$.cameras[0].zzz: unknown key (known: fps, name, region, rotate)"),
        ({"cameras": []}, "$.cameras: expected at least 1 items, got 0"),
        ({"cameras": {}}, "$.cameras: expected a list, got {}"),
        ({"cameras": None}, "$.cameras: expected a list, got nothing"),
        ({"count": 6}, "$.count: expected a whole number from 0 to 5, got 6"),
        ({"count": 1.5}, "$.count: expected a whole number from 0 to 5, got 1.5"),
        ({"on": "yes"}, '$.on: expected true or false, got "yes"'),
        ({"text": "ABC"}, '$.text: expected text that matches ^[a-z]*$, got "ABC"'),
        ({"table": {"a": "b"}}, '$.table.a: expected a whole number, got "b"'),
        ({"table": []}, "$.table: expected a mapping, got []"),
        ({"figure": {"shape": "circel"}}, "$.figure.shape: expected one of circle, square, got \"circel\" (did you mean 'circle'?)"),
        ({"figure": {"shape": []}}, "$.figure.shape: expected one of circle, square, got [] (known: circle, square)"),
        ({"figure": {"shape": "circle", "radius": 0}}, "$.figure.radius: expected a number above 0, got 0"),
        ({"figure": {"shape": "square"}}, "$.figure.side: expected a number, got nothing (add it)"),
        ({"number_or_text": []}, "$.number_or_text: expected a whole number or text, got []"),
        ({"text_or_list": ["x"]}, '$.text_or_list[0]: expected a whole number, got "x"'),
        ([], "$: expected a mapping, got []"),
        (None, "$: expected a mapping, got nothing"),
    ],
)  # fmt: skip
def test_error_says_where_what_and_what_to_do(raw, problem):
    assert wrong(raw) == [f"site.yaml: {problem}"]


def test_every_error_is_reported_at_once():
    raw = {"cameras": [{"name": "a b", "fps": 0}, {"fsp": 1}], "count": -1, "onn": True}
    assert [p.split(": ")[1] for p in wrong(raw)] == [
        "$.onn", "$.cameras[0].name", "$.cameras[0].fps", "$.cameras[1].fsp", "$.cameras[1].name", "$.count",
    ]  # fmt: skip


def test_value_shown_in_an_error_is_kept_short():
    (problem,) = wrong({"count": "x" * 1000})
    assert len(problem) < 150


def test_good_settings_become_the_frozen_type():
    sample = parse(
        Sample, {"cameras": [{"name": "g", "fps": 5}], "figure": {"shape": "square", "side": 2}}, "x"
    )
    assert sample.cameras == (Camera(name="g", fps=5.0),)
    assert sample.figure == Square(side=2.0)
    with pytest.raises(AttributeError):
        sample.count = 2


def test_json_that_is_none_is_a_config_error():
    with pytest.raises(ConfigError, match=r"^S: \$: expected JSON, got '\{'"):
        parse_json(Sample, "{", "S")


def test_module_settings_need_only_site_module_and_state():
    settings = parse(ModuleSettings, {"site": "s", "module": "m", "state": "/x"}, "S")
    assert settings.bus == BusSettings()
    assert wrong({"site": "s", "module": "m"}, ModuleSettings) == [
        "site.yaml: $.state: expected text, got nothing (add it)"
    ]


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 8), st.integers(2**63 - 2, 2**64 + 2), st.floats(),
    st.sampled_from(["", "a", "p", "q", "abc", "abcd", "A", "\n", "a\n", "circle", "square"]),
)  # fmt: skip
keys = st.sampled_from(["shape", "radius", "side", "name", "fps", "rotate", "region"])
anything = st.recursive(
    scalars, lambda c: st.lists(c, max_size=4) | st.dictionaries(keys, c, max_size=3), max_leaves=8
)
nearly = st.dictionaries(
    st.sampled_from([field.encode_name for field in msgspec.structs.fields(Sample)]), anything, max_size=3
)


@effort(max_examples=1500, deadline=None)
@given(nearly)
def test_problems_are_found_exactly_where_the_type_would_refuse(raw):
    """Our walk and msgspec agree on every input: nothing slips through, nothing good is refused."""
    if problems(Sample, raw):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(raw, Sample)
    else:
        msgspec.convert(raw, Sample)


@pytest.mark.parametrize("kind", NAMES)
def test_no_pattern_lets_a_line_break_at_the_end_through(kind):
    """Python's `$` is before one, too; what is checked goes into topics, access rules and file names."""
    schema = msgspec.json.schema(kind_of(kind).settings)
    patterns = re.findall(r'"pattern": "((?:[^"\\]|\\.)*)"', json.dumps(schema))
    assert all(
        json.loads(f'"{pattern}"').endswith("(?!\\n)") or "$" not in pattern for pattern in patterns
    ), patterns
