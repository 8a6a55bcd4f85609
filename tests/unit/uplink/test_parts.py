"""The pure parts of the uplink."""

from pathlib import Path

import pytest

from events import events
from skerry.errors import ConfigError
from skerry.messages import Outbound
from skerry.settings import parse
from skerry.uplink.backoff import Backoff
from skerry.uplink.batches import Batches
from skerry.uplink.journal import Journal
from skerry.uplink.progress import Progress
from skerry.uplink.settings import FileLink, MqttLink, UplinkSettings


def batch(first: int, last: int, *, base: int = 0, store: str = "s") -> Outbound:
    return Outbound(store=store, first=first, base=base, events=events(first, last))


def seqs(progress: Progress, message: Outbound) -> list[int] | None:
    todo = progress.todo(message)
    return None if todo is None else [e.seq for e in todo]


def test_the_wait_grows_to_its_bound_and_begins_anew_after_a_success() -> None:
    backoff = Backoff(first_s=1, last_s=5, draw=lambda: 1.0)
    assert [backoff.failed() for _ in range(5)] == [1, 2, 4, 5, 5]
    backoff.succeeded()
    assert backoff.failed() == 1


def test_the_whole_of_the_wait_is_drawn() -> None:
    assert Backoff(1, 5, draw=lambda: 0.0).failed() == 0


def test_an_endless_outage_does_not_overflow() -> None:
    backoff = Backoff(1, 5, draw=lambda: 1.0)
    assert {backoff.failed() for _ in range(5000)} == {1, 2, 4, 5}


def test_batches_follow_one_another() -> None:
    progress = Progress()
    assert seqs(progress, batch(1, 3)) == [1, 2, 3]
    progress.confirm("s", 3)
    assert seqs(progress, batch(4, 5)) == [4, 5]


def test_what_is_confirmed_is_skipped() -> None:
    progress = Progress()
    progress.confirm("s", 3)
    assert seqs(progress, batch(1, 5)) == [4, 5]
    assert seqs(progress, batch(1, 3)) == []


def test_a_jump_waits_for_what_was_lost_on_the_bus() -> None:
    progress = Progress()
    assert seqs(progress, batch(4, 5)) is None
    progress.confirm("s", 2)
    assert seqs(progress, batch(4, 5)) is None


def test_what_the_store_no_longer_has_is_not_waited_for() -> None:
    progress = Progress()
    assert seqs(progress, batch(9, 10, base=8)) == [9, 10]
    progress.confirm("s", 3)
    assert seqs(progress, batch(9, 10, base=8)) == [9, 10]


def test_another_store_begins_anew() -> None:
    progress = Progress()
    progress.confirm("s", 100)
    assert seqs(progress, batch(1, 2, store="t")) == [1, 2]


def test_confirmation_never_goes_back_and_memory_is_bounded() -> None:
    progress = Progress()
    progress.confirm("s", 9)
    assert progress.confirm("s", 4) == 9
    for n in range(100):
        progress.confirm(f"t{n}", 1)
    assert seqs(progress, batch(1, 2)) == [1, 2]


def test_waiting_batches_are_bounded_and_each_is_there_once() -> None:
    waiting = Batches(max_bytes=100)
    assert waiting.put(batch(1, 2), 60)
    assert waiting.put(batch(1, 3), 70)
    assert not waiting.put(batch(4, 5), 60)
    first = waiting.get(0)
    assert first is not None
    assert len(first.events) == 3
    assert waiting.get(0) is None
    assert waiting.put(batch(4, 5), 10_000)


def lines(journal: Journal) -> list[bytes]:
    return list(journal.open())


def test_a_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lines"
    journal = Journal(path)
    assert lines(journal) == []
    journal.append([b"one", b"two"])
    journal.close()
    with path.open("ab") as file:
        file.write(b"torn")
    again = Journal(path)
    assert lines(again) == [b"one", b"two"]
    again.append([b"three"])
    assert path.read_bytes() == b"one\ntwo\nthree\n"


def test_after_a_failure_what_may_not_be_on_disk_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lines"
    journal = Journal(path)
    lines(journal)
    journal.append([b"one"])

    def fail(_file: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("os.fdatasync", fail)
        with pytest.raises(OSError, match="Input/output error"):
            journal.append([b"two"])
    with pytest.raises(OSError, match="not open"):
        journal.append([b"two"])
    assert lines(journal) == [b"one"]
    journal.append([b"two"])
    assert path.read_bytes() == b"one\ntwo\n"


GIVEN = {"site": "s", "module": "u", "state": "/x"}
MQTT = {"kind": "mqtt", "host": "h"}


@pytest.mark.parametrize(
    ("link", "problem"),
    [
        (
            {"kind": "fil", "path": "x"},
            "$.link.kind: expected one of file, mqtt, got \"fil\" (did you mean 'file'?)",
        ),
        ({"kind": "file"}, "$.link.path: expected text, got nothing (add it)"),
        (MQTT | {"port": 99999}, "$.link.port: expected a whole number from 0 to 65535, got 99999"),
        (
            MQTT | {"topic": "a/{x}"},
            "$.link: topic: expected only {site}, {lane} and {type}, got 'a/{x}'",
        ),
        (
            MQTT | {"topic": "a/{"},
            "$.link: topic: expected a template, got 'a/{' (Single '{' encountered in format string)",
        ),
        (MQTT | {"topic": "a/+/#"}, "$.link: topic: expected no wildcard, got 'a/+/#'"),
    ],
)
def test_wrong_links_are_named(link: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(UplinkSettings, {**GIVEN, "link": link}, "site")
    assert caught.value.problems == (f"site: {problem}",)


def test_links_are_told_apart_by_kind() -> None:
    file = parse(UplinkSettings, {**GIVEN, "link": {"kind": "file", "path": "x"}}, "site")
    assert isinstance(file.link, FileLink)
    assert isinstance(parse(UplinkSettings, {**GIVEN, "link": MQTT}, "site").link, MqttLink)
