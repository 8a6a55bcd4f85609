"""What a desired state means: a patch on the settings as deployed, and what of it may be changed when.

Pure. Both sides use it: the uplink before anyone sees a desired state, and each module before it believes
one. A setting may be changed from outside only where its type says so, with `LIVE` or `RESTART`.

Source: RFC 7396, JSON Merge Patch.
"""

from __future__ import annotations

import hashlib
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec

from skerry.errors import ConfigError
from skerry.settings import ModuleSettings, Problem, Settings, problems

S = TypeVar("S", bound=ModuleSettings)
Check = Callable[[S], Sequence[Problem]]
"""What types cannot see in a module's settings: names that are nobody's, rules that contradict themselves."""

Change = Literal["live", "restart", "fixed"]
_DEEPEST = 32
"""Levels of a patch; a twin has 10."""
_LONGEST_ERROR = 300
_MOST_ERRORS = 50


class Adjusted(NamedTuple):
    """Settings with a patch on them."""

    whole: Any
    """All of it, as it will be after the next start."""
    live: Any
    """What of it counts now."""
    restart: tuple[str, ...]
    """Paths of what does not."""


def nothing(_settings: object) -> Sequence[Problem]:
    """The check of a module whose types see everything."""
    return ()


def digest(patch: Mapping[str, Any]) -> str:
    """What tells a patch from another: 16 hexadecimal digits."""
    return hashlib.sha256(msgspec.json.encode(patch, order="sorted")).hexdigest()[:16]


def adjusted(deployed: S, now: S, patch: Mapping[str, Any], check: Check[S], where: str) -> Adjusted:
    """A module's settings with a patch on them.

    Args:
        deployed: the settings that the patch is on.
        now: what the module goes by at this time, started with the same `deployed`.
        patch: see `skerry.messages.Desired`.
        check: of the module, for what types cannot see.
        where: names the module in errors, e.g. `modules.decision`.

    Raises:
        ConfigError: with every problem: a wrong type or value, a setting that does not exist or may not
            be changed from outside.
    """
    if depth(patch) > _DEEPEST:
        raise ConfigError(f"{where}: expected at most {_DEEPEST} levels, got more")
    kind = type(deployed)
    before = msgspec.to_builtins(deployed)
    after = patched(before, patch)
    whole: S | None = None
    found = problems(kind, after, most=_MOST_ERRORS)
    if not found:
        whole, found = _converted(kind, after)
    if whole is not None:
        found = [*_fixed(deployed, whole), *check(whole)]
    if whole is None or found:
        raise ConfigError([_said(where, path, after, text) for path, text in found[:_MOST_ERRORS]])
    try:
        live, restart = _live(now, whole, "$")
    except ValueError:
        sound = False
    else:
        sound = not restart or not check(live)
    if not sound:
        # Half of the change makes no sense without the other half.
        return Adjusted(
            whole, now, tuple(_named(p, after)[1:] for p, _ in _changes(now, whole, "$", "fixed"))
        )
    return Adjusted(whole, live, tuple(_named(path, after)[1:] for path in restart))


def _converted(kind: type[S], after: Any) -> tuple[S | None, list[Problem]]:
    """The settings, or what a type's own check says of them."""
    try:
        return msgspec.convert(after, kind), []
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at ")
        return None, [(path.strip("`") or "$", text)]


def _said(where: str, path: str, data: Any, text: str) -> str:
    """A problem in the words of the patch."""
    return f"{where}{_named(path, data)}: {text}"[:_LONGEST_ERROR]


def patched(base: Any, patch: Any) -> Any:
    """Plain data with a patch on it."""
    if not isinstance(patch, Mapping):
        return patch
    if isinstance(base, list | tuple) and (names := _names(base)) is not None:
        items = dict(zip(names, base, strict=True))
        for name, change in patch.items():
            if change is None:
                items.pop(name, None)
                continue
            new = patched(items.get(name, {}), change)
            if name not in items and isinstance(new, dict) and not (base and "name" not in base[0]):
                new = {"name": name, **new}
            items[name] = new
        return list(items.values())
    out = dict(base) if isinstance(base, Mapping) else {}
    for key, change in patch.items():
        if change is None:
            out.pop(key, None)
        else:
            out[key] = patched(out.get(key), change)
    return out


def depth(data: Any) -> int:
    """Levels of mappings and lists, counted up to a bound, without recursion."""
    level, deepest = [data], 0
    while level and deepest <= _DEEPEST:
        level = [
            child
            for item in level
            if isinstance(item, Mapping | list | tuple)
            for child in (item.values() if isinstance(item, Mapping) else item)
        ]
        deepest += 1
    return deepest


class Adjustable(NamedTuple):
    """A setting that may be changed from outside."""

    path: str
    """`NAME` stands for the name of a thing in a list, or for its place."""
    change: Change
    owner: type[Settings]
    """The type that has the field."""
    field: str


def adjustable(kind: type[Settings]) -> list[Adjustable]:
    """The settings of a type that may be changed from outside, by path."""
    return sorted(_adjustable(kind, ""), key=lambda found: found.path)


def _names(items: Sequence[Any]) -> list[str] | None:
    """What the elements of a list are addressed by; None where it is no list of mappings."""
    if not all(isinstance(item, Mapping) for item in items):
        return None
    names = [item.get("name") for item in items]
    if all(isinstance(name, str) for name in names) and len(set(names)) == len(names):
        return [str(name) for name in names]
    return [str(n) for n in range(len(items))]


def _fixed(deployed: Settings, whole: Settings) -> Iterator[Problem]:
    """What may not be changed from outside, and would be."""
    for path, change in _changes(deployed, whole, "$", "fixed"):
        if change == "fixed":
            known = ", ".join(found.path for found in adjustable(type(deployed)))
            yield path, f"expected a setting that may be changed from outside (these: {known})"


def _changes(one: Settings, other: Settings, path: str, inherited: Change) -> Iterator[tuple[str, Change]]:
    """Each setting that differs, as deep as both sides have the same shape."""
    if type(one) is not type(other):
        yield path, inherited
        return
    marks = _marks(type(one))
    for name in one.__struct_fields__:
        a, b = getattr(one, name), getattr(other, name)
        if a == b:
            continue
        change = marks.get(name, inherited)
        if isinstance(a, Settings) and isinstance(b, Settings):
            yield from _changes(a, b, f"{path}.{name}", change)
        elif _paired(a, b):
            for n, (left, right) in enumerate(zip(a, b, strict=True)):
                if left != right:
                    yield from _changes(left, right, f"{path}.{name}[{n}]", change)
        else:
            yield f"{path}.{name}", change


def _live(now: Settings, whole: Settings, path: str, inherited: Change = "fixed") -> tuple[Any, list[str]]:
    """The settings `now` with the live part of `whole`, and the paths of the rest."""
    marks = _marks(type(now))
    taken: dict[str, Any] = {}
    rest: list[str] = []
    for name in now.__struct_fields__:
        a, b = getattr(now, name), getattr(whole, name)
        if a == b:
            continue
        change = marks.get(name, inherited)
        here = f"{path}.{name}"
        if change != "live" and isinstance(a, Settings) and type(a) is type(b):
            taken[name], more = _live(a, b, here, change)
            rest += more
        elif change != "live" and _paired(a, b):
            parts = [_live(x, y, f"{here}[{n}]", change) for n, (x, y) in enumerate(zip(a, b, strict=True))]
            taken[name] = tuple(part for part, _ in parts)
            rest += [p for _, more in parts for p in more]
        elif change == "live":
            taken[name] = b
        else:
            rest.append(here)
    return (msgspec.structs.replace(now, **taken) if taken else now), rest


def _paired(a: Any, b: Any) -> bool:
    """Whether two lists hold the same things in the same order, perhaps changed."""
    if not (isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b)):
        return False
    return all(
        isinstance(x, Settings) and type(x) is type(y) and getattr(x, "name", "") == getattr(y, "name", "")
        for x, y in zip(a, b, strict=True)
    )


@cache
def _marks(kind: type) -> dict[str, Change]:
    """Which fields say when a change of them counts."""
    found: dict[str, Change] = {}
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        for meta in getattr(hint, "__metadata__", ()):
            if isinstance(meta, msgspec.Meta) and meta.extra and "change" in meta.extra:
                found[name] = meta.extra["change"]
    return found


def _adjustable(kind: type[Settings], path: str) -> Iterator[Adjustable]:
    marks = _marks(kind)
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        if name not in kind.__struct_fields__:  # a class variable
            continue
        here = f"{path}.{name}" if path else name
        if name in marks:
            yield Adjustable(here, marks[name], kind, name)
            continue
        for inner, step in _structs(hint):
            yield from _adjustable(inner, here + step)


def _structs(hint: Any) -> Iterator[tuple[type[Settings], str]]:
    """Settings types inside a hint, and how they are reached."""
    if isinstance(hint, type) and issubclass(hint, Settings):
        yield hint, ""
        return
    origin = typing.get_origin(hint)
    step = ".NAME" if origin in (tuple, list, dict) else ""
    for inner in typing.get_args(hint):
        if inner is not hint and not isinstance(inner, msgspec.Meta):
            for kind, more in _structs(inner):
                yield kind, step + more


def _named(path: str, data: Any) -> str:
    """`$.rules[0].zone` as `.rules.belt-full.zone`: as the patch says it."""
    out = ""
    for name, place in re.findall(r"\.([^.\[]+)|\[(\d{1,9})\]", path):
        try:
            if place and isinstance(data, list | tuple):
                data = data[int(place)]
                told = data.get("name") if isinstance(data, Mapping) else None
                out += f".{told}" if isinstance(told, str) else f".{place}"
                continue
            data = data.get(name) if isinstance(data, Mapping) else None
        except IndexError:
            data = None
        out += f".{name}" if name else f".{place}"
    return out
