"""How a twin is kept up with, and what is sent of a reported state."""

from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.uplink.links.twin import Twin, difference, merged

LEAVES = st.none() | st.booleans() | st.integers(0, 3) | st.text("ab", max_size=2) | st.lists(st.booleans())
FULL = st.recursive(
    st.dictionaries(st.sampled_from("abc"), LEAVES.filter(lambda leaf: leaf is not None)),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner),
    max_leaves=8,
)


@settings(deadline=None)
@given(FULL, FULL)
def test_the_difference_makes_the_one_of_the_other(old, new) -> None:
    assert merged(old, difference(old, new)) == new
    assert difference(new, new) == {}


def test_one_and_true_are_not_the_same() -> None:
    assert difference({"a": 1}, {"a": True}) == {"a": True}


def test_merging_changes_neither_document() -> None:
    old, patch = {"a": {"b": 1}}, {"a": {"c": 2, "b": None}}
    assert merged(old, patch) == {"a": {"c": 2}}
    assert (old, patch) == ({"a": {"b": 1}}, {"a": {"c": 2, "b": None}})


def desired(version: int, **keys: object) -> dict[str, object]:
    return {"$version": version, "$metadata": {}, **keys}


def whole(version: int, **keys: object) -> dict[str, object]:
    return {"desired": desired(version, **keys), "reported": {"$version": 1, "r": 1}}


def test_the_whole_comes_without_what_the_platform_adds() -> None:
    twin = Twin()
    assert twin.wanted
    assert twin.whole(whole(3, a=1)) == (3, {"a": 1})
    assert not twin.wanted
    assert twin.difference({}) == {"r": None}


def test_changes_before_the_whole_and_behind_a_hole_wait_for_the_whole() -> None:
    twin = Twin()
    assert twin.changed(desired(5, a=1)) is None
    assert twin.whole(whole(4, a=0)) == (4, {"a": 0})
    assert twin.wanted  # 5 was heard of while the answer was on its way
    assert twin.whole(whole(5, a=1)) == (5, {"a": 1})
    assert twin.changed(desired(7, b=1)) is None
    assert twin.wanted
    assert twin.changed(desired(6, b=1)) is None
    assert twin.whole(whole(7, a=1, b=1)) == (7, {"a": 1, "b": 1})
    assert twin.changed(desired(8, a=None)) == (8, {"b": 1})
    assert not twin.wanted


def test_what_is_old_or_no_twin_changes_nothing() -> None:
    twin = Twin()
    twin.whole(whole(3, a=1))
    for answer in (None, [], {}, {"desired": []}, {"desired": {"$version": "4"}}, whole(2), whole(3)):
        assert twin.whole(answer) is None
    for patch in (None, [], {}, {"$version": True}, {"$version": None}, desired(3, a=2), desired(1)):
        assert twin.changed(patch) is None
    assert not twin.wanted


def test_after_a_doubt_the_whole_counts_whatever_its_version() -> None:
    twin = Twin()
    twin.whole(whole(3, a=1))
    twin.doubt()
    assert twin.wanted
    assert twin.whole(whole(3, a=1)) == (3, {"a": 1})


def test_what_was_told_is_unknown_until_the_platform_says_it() -> None:
    twin = Twin()
    assert not twin.known
    twin.whole(whole(1))
    twin.told({"x": 1})
    assert twin.difference({"x": 1}) == {}
    twin.forget()
    assert not twin.known
    assert twin.wanted
