"""The pure parts of the uplink."""

from pathlib import Path

import pytest

from skerry.errors import ConfigError
from skerry.settings import parse
from skerry.uplink.backoff import Backoff
from skerry.uplink.journal import Journal
from skerry.uplink.settings import FileLink, MqttLink, UplinkSettings


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


def lines(journal: Journal) -> list[bytes]:
    return list(journal.open())


def append(journal: Journal, items: list[bytes]) -> None:
    journal.write(items)
    journal.sync()


def test_a_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lines"
    journal = Journal(path)
    assert lines(journal) == []
    append(journal, [b"one", b"two"])
    journal.close()
    with path.open("ab") as file:
        file.write(b"torn")
    again = Journal(path)
    assert lines(again) == [b"one", b"two"]
    append(again, [b"three"])
    assert path.read_bytes() == b"one\ntwo\nthree\n"


def test_after_a_failure_what_may_not_be_on_disk_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lines"
    journal = Journal(path)
    lines(journal)
    append(journal, [b"one"])

    def fail(_file: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("os.fdatasync", fail)
        with pytest.raises(OSError, match="Input/output error"):
            append(journal, [b"two"])
    with pytest.raises(OSError, match="not open"):
        append(journal, [b"two"])
    assert lines(journal) == [b"one"]
    append(journal, [b"two"])
    assert path.read_bytes() == b"one\ntwo\n"


GIVEN = {"site": "s", "module": "u", "state": "/x"}
MQTT = {"kind": "mqtt", "host": "h"}


@pytest.mark.parametrize(
    ("link", "problem"),
    [
        ({"kind": "file"}, "$.link.path: expected text, got nothing (add it)"),
        (MQTT | {"port": 99999}, "$.link.port: expected a whole number from 0 to 65535, got 99999"),
        (
            MQTT | {"topic": "a/{x}"},
            "$.link: topic: expected only {site}, {lane}, {type}, {camera} and {rule}, got 'a/{x}'",
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


def test_a_link_of_no_kind_is_told_the_kinds() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(UplinkSettings, {**GIVEN, "link": {"kind": "fil", "path": "x"}}, "site")
    (problem,) = caught.value.problems
    assert problem.startswith("site: $.link.kind: expected one of file, mqtt, http")
    assert problem.endswith("got \"fil\" (did you mean 'file'?)")


def test_links_are_told_apart_by_kind() -> None:
    file = parse(UplinkSettings, {**GIVEN, "link": {"kind": "file", "path": "x"}}, "site")
    assert isinstance(file.link, FileLink)
    assert isinstance(parse(UplinkSettings, {**GIVEN, "link": MQTT}, "site").link, MqttLink)
