"""Parsing settings at the door: a frozen type, or every error at once.

A settings type is a `msgspec.Struct`. msgspec stops at the first thing it dislikes; a person who
wrote a file wants all of it, so `parse` walks the same type information first and collects problems
of the form `site.yaml: $.cameras[0].fps: expected a number above 0, got -5`.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, inspect

from skerry.errors import ConfigError
from skerry.messages import NAME, Name

T = TypeVar("T")
Problem = tuple[str, str]
"""(path, message), e.g. ("$.cameras[0].fps", "expected a number above 0, got -5")."""

_Listed = inspect.ListType | inspect.VarTupleType | inspect.SetType | inspect.FrozenSetType

LIVE = Meta(extra={"change": "live"})
"""Marks a setting that may be changed from outside, at once: `rules: Annotated[..., LIVE]`."""

RESTART = Meta(extra={"change": "restart"})
"""Marks a setting that may be changed from outside, from the next start of the module on."""

Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[float, Meta(gt=0)]
LogLevel = Literal["debug", "info", "warning", "error"]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every settings type: frozen, named fields only, unknown keys refused."""


class TlsSettings(Settings, frozen=True, kw_only=True):
    """TLS for the bus or a link. Paths, never key material."""

    ca: str = ""
    """PEM file of the authorities to trust; empty means the system's."""
    certificate: str = ""
    """PEM file of the client certificate, with `key`."""
    key: str = ""
    """PEM file of the client certificate's private key."""


class BusSettings(Settings, frozen=True, kw_only=True):
    """Where the MQTT broker is."""

    host: str = "127.0.0.1"
    port: Port = 1883
    user: str = ""
    password_file: str = ""
    """File that holds the password; secrets are references."""
    tls: TlsSettings | None = None
    keepalive_s: Annotated[int, Meta(ge=1, le=3600)] = 15
    """MQTT keep-alive: a silent broker is noticed after at most twice this."""


class ModuleSettings(Settings, frozen=True, kw_only=True):
    """What every module is told, whatever it does."""

    site: Name
    module: Name
    """The instance's name on the bus, e.g. `capture` or `capture-hall`."""
    bus: BusSettings = BusSettings()
    state: str
    """Folder for what must survive a kill of this process. Made if missing."""
    http_host: str = "127.0.0.1"
    http_port: Port | None = None
    """Port of /healthz, /readyz and /metrics; 0 takes a free one, null serves none."""
    log: Literal["json", "console"] = "json"
    log_level: Annotated[LogLevel, LIVE] = "info"
    """Least level of what is logged."""
    grace_s: Positive = 4.0
    """After SIGTERM, how long to drain before giving up."""
    watchdog_s: Positive = 30.0
    """The process exits with 70 when its main loop has not moved for this long."""


def parse(kind: type[T], raw: object, where: str) -> T:
    """Turn plain data (from YAML or JSON) into `kind`.

    Args:
        kind: a msgspec struct type.
        raw: dicts, lists, strings, numbers, booleans, None.
        where: names the source in messages, e.g. `site.yaml`.

    Raises:
        ConfigError: with every problem found, each naming its path.
    """
    found = problems(kind, raw)
    if found:
        raise ConfigError([f"{where}: {path}: {text}" for path, text in found])
    return convert(kind, raw, where)


def convert(kind: type[T], raw: object, where: str) -> T:
    """`msgspec.convert` whose error is a `ConfigError`."""
    try:
        return msgspec.convert(raw, type=kind)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at ")
        raise ConfigError(f"{where}: {path.strip('`') or '$'}: {text}") from error


def parse_json(kind: type[T], text: str | bytes, where: str) -> T:
    """`parse` for a JSON document."""
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{where}: $: expected JSON, got {str(text)[:40]!r} ({error})") from error
    return parse(kind, raw, where)


def compact(settings: Settings) -> dict[str, Any]:
    """Settings as plain data without what is its type's default, so that `parse` gives the same again."""
    said: dict[str, Any] = {}
    config = settings.__struct_config__
    if config.tag_field is not None:
        said[config.tag_field] = config.tag
    for field in msgspec.structs.fields(settings):
        value = getattr(settings, field.name)
        default = field.default
        if default is msgspec.NODEFAULT and field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        if default is msgspec.NODEFAULT or value != default:
            said[field.encode_name] = _compact(value)
    return said


def _compact(value: Any) -> Any:
    match value:
        case Settings():
            return compact(value)
        case dict():
            return {key: _compact(each) for key, each in value.items()}
        case list() | tuple():
            return [_compact(each) for each in value]
        case _:
            return msgspec.to_builtins(value)


def problems(kind: object, raw: object, path: str = "$", most: int | None = None) -> list[Problem]:
    """Every way in which `raw` is not a `kind`; empty when it is one.

    Args:
        kind: a type.
        raw: plain data.
        path: where it stands.
        most: look for no more than this many, for data that nobody here wrote; None is all.
    """
    return list(islice(_walk(inspect.type_info(kind), raw, path), most))


def _walk(want: inspect.Type, raw: object, path: str) -> Iterator[Problem]:
    """Yield the problems of one value."""
    want = _bare(want)
    match want:
        case inspect.StructType():
            yield from _walk_struct(want, raw, path)
        case inspect.UnionType():
            yield from _walk_union(want, raw, path)
        case inspect.ListType() | inspect.VarTupleType() | inspect.SetType() | inspect.FrozenSetType():
            yield from _walk_list(want, raw, path)
        case inspect.TupleType(item_types=items):
            if not isinstance(raw, list | tuple) or len(raw) != len(items):
                yield path, f"expected a list of {len(items)}, got {_show(raw)}"
                return
            for n, (item, value) in enumerate(zip(items, raw, strict=True)):
                yield from _walk(item, value, f"{path}[{n}]")
        case inspect.DictType(key_type=key_type, value_type=value_type):
            if not isinstance(raw, dict):
                yield path, f"expected a mapping, got {_show(raw)}"
                return
            for key, value in raw.items():
                yield from _walk(key_type, key, f"{path}.{key}")
                yield from _walk(value_type, value, f"{path}.{key}")
        case inspect.AnyType():
            return
        case _:
            if not _fits(want, raw):
                yield path, f"expected {_describe(want)}, got {_show(raw)}"


def _bare(want: inspect.Type) -> inspect.Type:
    while isinstance(want, inspect.Metadata):
        want = want.type
    return want


def _walk_struct(want: inspect.StructType, raw: object, path: str) -> Iterator[Problem]:
    if not isinstance(raw, dict):
        yield path, f"expected a mapping, got {_show(raw)}"
        return
    fields = {f.encode_name: f for f in want.fields}
    known = [*fields, want.tag_field] if want.tag_field else list(fields)
    if want.cls.__struct_config__.forbid_unknown_fields:
        for key in raw:
            if key not in known:
                yield f"{path}.{key}", f"unknown key{_suggest(str(key), known)}"
    for name, field in fields.items():
        if name in raw:
            yield from _walk(field.type, raw[name], f"{path}.{name}")
        elif field.required:
            yield f"{path}.{name}", f"expected {_describe(_bare(field.type))}, got nothing (add it)"


def _walk_union(want: inspect.UnionType, raw: object, path: str) -> Iterator[Problem]:
    choices = [_bare(t) for t in want.types]
    if raw is None and any(isinstance(t, inspect.NoneType) for t in choices):
        return
    tagged = {t.tag: t for t in choices if isinstance(t, inspect.StructType) and t.tag is not None}
    if tagged and isinstance(raw, dict):
        yield from _walk_tagged(tagged, raw, path)
        return
    rest = [t for t in choices if not isinstance(t, inspect.NoneType)]
    results = [list(_walk(t, raw, path)) for t in rest]
    if all(results):
        if len(results) == 1:
            yield from results[0]
            return
        shaped = [r for t, r in zip(rest, results, strict=True) if _same_shape(t, raw)]
        if len(shaped) == 1:
            yield from shaped[0]
            return
        yield path, f"expected {' or '.join(_describe(t) for t in rest)}, got {_show(raw)}"


def _walk_tagged(tagged: dict[Any, inspect.StructType], raw: dict[Any, Any], path: str) -> Iterator[Problem]:
    field = next(iter(tagged.values())).tag_field or "type"
    names = [str(t) for t in tagged]
    tag = raw.get(field)
    if not isinstance(tag, str | int) or tag not in tagged:
        yield (
            f"{path}.{field}",
            f"expected one of {', '.join(names)}, got {_show(tag)}" + _suggest(str(tag), names),
        )
        return
    yield from _walk_struct(tagged[tag], raw, path)


def _walk_list(want: _Listed, raw: object, path: str) -> Iterator[Problem]:
    if not isinstance(raw, list | tuple):
        yield path, f"expected a list, got {_show(raw)}"
        return
    if want.min_length is not None and len(raw) < want.min_length:
        yield path, f"expected at least {want.min_length} items, got {len(raw)}"
    if want.max_length is not None and len(raw) > want.max_length:
        yield path, f"expected at most {want.max_length} items, got {len(raw)}"
    for n, value in enumerate(raw):
        yield from _walk(want.item_type, value, f"{path}[{n}]")


def _same_shape(want: inspect.Type, raw: object) -> bool:
    match want:
        case inspect.StructType() | inspect.DictType():
            return isinstance(raw, dict)
        case (
            inspect.ListType()
            | inspect.TupleType()
            | inspect.VarTupleType()
            | inspect.SetType()
            | inspect.FrozenSetType()
        ):
            return isinstance(raw, list | tuple)
        case _:
            return not isinstance(raw, dict | list | tuple)


def _fits(want: inspect.Type, raw: object) -> bool:
    """Whether a scalar is of type `want` and within its bounds."""
    match want:
        case inspect.BoolType():
            return isinstance(raw, bool)
        case inspect.IntType():
            return isinstance(raw, int) and not isinstance(raw, bool) and _within(want, raw)
        case inspect.FloatType():
            if not isinstance(raw, int | float) or isinstance(raw, bool):
                return False
            return _finite(raw) and _within(want, raw)
        case inspect.StrType():
            return isinstance(raw, str) and _text_fits(want, raw)
        case inspect.LiteralType(values=values):
            return raw in values and not (
                isinstance(raw, bool) and raw not in (v for v in values if v is raw)
            )
        case inspect.NoneType():
            return raw is None
        case _:
            return True


def _finite(raw: float) -> bool:
    """Whether a number is one of 64 bits; JSON has longer ones."""
    try:
        return math.isfinite(raw)
    except OverflowError:
        return False


def _within(want: inspect.IntType | inspect.FloatType, raw: Any) -> bool:
    return not (
        (want.gt is not None and raw <= want.gt)
        or (want.ge is not None and raw < want.ge)
        or (want.lt is not None and raw >= want.lt)
        or (want.le is not None and raw > want.le)
    )


def _text_fits(want: inspect.StrType, raw: str) -> bool:
    return not (
        (want.min_length is not None and len(raw) < want.min_length)
        or (want.max_length is not None and len(raw) > want.max_length)
        or (want.pattern is not None and not re.search(want.pattern, raw))
    )


def _describe(want: inspect.Type) -> str:
    """A noun phrase for what is wanted."""
    match _bare(want):
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType() as number:
            return f"a whole number{_bounds(number)}"
        case inspect.FloatType() as number:
            return f"a number{_bounds(number)}"
        case inspect.StrType(pattern=pattern, max_length=longest):
            if pattern == NAME:
                return f"a name (letters, digits, - and _; at most {longest or 64})"
            return f"text that matches {pattern}" if pattern else "text"
        case inspect.LiteralType(values=values):
            return f"one of {', '.join(str(v) for v in values)}"
        case (
            inspect.ListType()
            | inspect.VarTupleType()
            | inspect.TupleType()
            | inspect.SetType()
            | inspect.FrozenSetType()
        ):
            return "a list"
        case inspect.NoneType():
            return "null"
        case inspect.UnionType(types=types):
            return " or ".join(dict.fromkeys(_describe(t) for t in types))
        case _:
            return "a mapping"


def _bounds(want: inspect.IntType | inspect.FloatType) -> str:
    low = (
        f"above {_plain(want.gt)}"
        if want.gt is not None
        else f"{_plain(want.ge)} or more"
        if want.ge is not None
        else ""
    )
    high = (
        f"below {_plain(want.lt)}"
        if want.lt is not None
        else f"at most {_plain(want.le)}"
        if want.le is not None
        else ""
    )
    if want.ge is not None and want.le is not None:
        return f" from {_plain(want.ge)} to {_plain(want.le)}"
    text = " and ".join(part for part in (low, high) if part)
    return f" {text}" if text else ""


def _plain(number: float) -> str:
    """33554432, not 3.35544e+07."""
    return str(int(number)) if float(number).is_integer() else f"{number:g}"


def _show(raw: object) -> str:
    text = "nothing" if raw is None else json.dumps(raw, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _suggest(word: str, known: list[str]) -> str:
    """` (did you mean 'fps'?)`, or the known words when none is near."""
    near = difflib.get_close_matches(word, known, n=1)
    if near:
        return f" (did you mean '{near[0]}'?)"
    return f" (known: {', '.join(sorted(known))})" if known else ""
