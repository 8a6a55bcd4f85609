"""Batches: what goes in comes out, whatever the compression; what is no batch is said to be none."""

import builtins
import gzip
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import needs
from records import records
from skerry.batches import BatchError, Compression, compressor, decode, encode, split
from skerry.errors import ConfigError

KINDS: list[Compression] = ["none", "zstd", "gzip"]
MAGIC = {"none": b"[", "zstd": b"\x28\xb5\x2f\xfd", "gzip": b"\x1f\x8b"}
RAWS = [r.raw for r in records(1, 100)]


@pytest.mark.parametrize("kind", KINDS)
def test_events_come_out_byte_for_byte_and_the_first_bytes_tell_the_compression(kind: Compression) -> None:
    payload = compressor(kind)(encode(RAWS))
    assert payload.startswith(MAGIC[kind])
    assert decode(payload) == RAWS


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_never_grows(kind: Compression) -> None:
    small = encode([b'{"a":1}'])
    assert compressor(kind)(small) == small


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(KINDS), st.lists(st.dictionaries(st.text(), JSON), max_size=4))))
def test_messages_one_behind_the_other_are_told_apart(messages: list[tuple[Compression, list[Any]]]) -> None:
    encoded = [
        (kind, [json.dumps(e, ensure_ascii=False).encode("utf-8", "surrogatepass") for e in batch])
        for kind, batch in messages
    ]
    encoded = [(kind, [e for e in batch if valid(e)]) for kind, batch in encoded]
    content = b"\n".join(compressor(kind)(encode(batch)) for kind, batch in encoded)
    assert list(split(content)) == [batch for _, batch in encoded]


def valid(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_a_single_event_is_taken_as_well() -> None:
    assert decode(RAWS[0]) == [RAWS[0]]
    assert decode(gzip.compress(RAWS[0])) == [RAWS[0]]
    assert list(split(b" \n".join(RAWS[:3]))) == [[raw] for raw in RAWS[:3]]


ZSTD = compressor("zstd")(encode(RAWS))
GZIP = compressor("gzip")(encode(RAWS))


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        (b"", "expected one batch, got 0"),
        (b"hello", "byte 0: expected a batch of events, got 'hello'"),
        (b"3", "byte 0: expected a batch of events, got '3'"),
        (b"[1, 2]", "byte 0: expected a batch of events, got '[1, 2]'"),
        (b'[{"a":1}', "byte 0: expected a batch of events"),
        (b'[{"a":"\xff"}]', "byte 0: expected JSON, zstd or gzip, got b'[{"),
        (b"[" * 100_000, "byte 0: expected a batch of events, got '[[["),
        (ZSTD[:-5], "byte 0: expected a whole batch, got a part of one"),
        (GZIP[:-5], "byte 0: expected a whole batch, got a part of one"),
        (GZIP[:50] + b"xx" + GZIP[52:], "byte 0: cannot decompress: "),
        (ZSTD[:50] + b"xx" + ZSTD[52:], "byte 0: "),
        (b'[{"a":1}]  ' + GZIP[:9], "byte 11: expected a whole batch"),
    ],
)
def test_what_is_no_batch_is_named_with_its_place(payload: bytes, problem: str) -> None:
    with pytest.raises(BatchError) as caught:
        decode(payload)
    assert str(caught.value).startswith(problem)


@pytest.mark.parametrize("squeeze", [compressor("gzip"), compressor("zstd")], ids=["gzip", "zstd"])
def test_what_would_fill_the_memory_is_refused(squeeze: Callable[[bytes], bytes]) -> None:
    bomb = squeeze(b'[{"a":"' + b"x" * 50_000_000 + b'"}]')
    assert len(bomb) < 300_000
    with pytest.raises(BatchError, match="expected at most 1000000 bytes once decompressed, got more"):
        decode(bomb, max_bytes=1_000_000)


def test_zstd_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "zstandard":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    for use in (lambda: compressor("zstd"), lambda: decode(ZSTD)):
        with pytest.raises(ConfigError, match=r"pip install 'skerry\[uplink\]'"):
            use()


@pytest.mark.parametrize("kind", KINDS)
def test_the_decoder_of_the_documentation_works(kind: Compression) -> None:
    page = (needs.ROOT / "docs" / "batch-format.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 1
    assert len([line for line in blocks[0].splitlines() if line.strip()]) <= 22
    names: dict[str, Any] = {}
    exec(blocks[0], names)
    seen: dict[tuple[str, str], int] = {}
    batch = compressor(kind)(encode(RAWS))
    assert names["events"](batch, seen) == [json.loads(raw) for raw in RAWS]
    assert names["events"](batch, seen) == []
    assert names["events"](RAWS[0], {}) == [json.loads(RAWS[0])]
