"""Metadata over HTTP where the server has other ideas."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from file_server import FileServer, Manner
from skerry.errors import ConfigError, LinkDown, PackageError, Unavailable
from skerry.settings import parse
from skerry.updater.http_folder import HttpSource
from skerry.updater.metadata import HttpMetadata
from skerry.updater.settings import FetchSettings, HttpSourceSettings
from skerry.updater.sources import opened
from skerry.updater.web import Patience, address


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FileServer]:
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "timestamp.json").write_bytes(b"{}" * 500)
    with FileServer(tmp_path) as server:
        yield server


def metadata(server: FileServer) -> HttpMetadata:
    return HttpMetadata(HttpSource(server.url, Patience(20)))


def test_a_store_of_objects_that_forbids_what_is_not_there_has_no_next_root(server: FileServer) -> None:
    server.manner = Manner(status=403)
    assert metadata(server).read("2.root.json", 1000) is None
    with pytest.raises(Unavailable, match=r"got 403 .*who may read it"):
        metadata(server).read("timestamp.json", 1000)


@pytest.mark.parametrize("name", ["../index.json", "/etc/hostname", "", "a/b.json"])
def test_nothing_outside_of_it_is_read(server: FileServer, name: str) -> None:
    with pytest.raises(PackageError, match="expected the name of a file"):
        metadata(server).read(name, 1000)


def test_a_login_that_is_missing_is_said_so(server: FileServer) -> None:
    server.manner = Manner(status=401)
    with pytest.raises(Unavailable, match=r"got 401 \(it wants a login, or another one\)"):
        metadata(server).read("2.root.json", 1000)


def test_a_page_of_a_portal_is_not_taken_for_a_repository(server: FileServer) -> None:
    server.manner = Manner(headers={"Content-Type": "text/html; charset=utf-8"})
    with pytest.raises(LinkDown, match="got a page for people"):
        metadata(server).read("timestamp.json", 1000)


def test_a_document_takes_no_longer_than_all_of_it_may(server: FileServer) -> None:
    server.manner = Manner(pause_s=0.001)
    ticks = itertools.count(0, 3)
    source = HttpSource(server.url, Patience(20, least_bytes_per_s=0, clock=lambda: next(ticks)))
    with pytest.raises(LinkDown, match="expected an end to it by now"):
        HttpMetadata(source, within_s=60.0).read("timestamp.json", 10_000)


def test_a_body_that_ends_early_is_one_to_try_again(server: FileServer) -> None:
    server.manner = Manner(cut=100)
    with pytest.raises(LinkDown, match=r"try again|expected 1000 bytes, got"):
        metadata(server).read("timestamp.json", 10_000)


def test_headers_without_an_end_are_cut_off(server: FileServer) -> None:
    # A hundred interim answers and then another hundred: http.client reads them for ever.
    server.manner = Manner(raw=b"HTTP/1.1 100 Continue\r\nX: " + b"x" * 60_000 + b"\r\n\r\n", repeat=200)
    with pytest.raises(PackageError, match="expected an answer with an end"):
        metadata(server).read("timestamp.json", 1000)


def test_a_login_is_read_anew_for_each_request(server: FileServer, tmp_path: Path) -> None:
    token, key = tmp_path / "token", tmp_path / "key"
    token.write_text("first\n")
    key.write_text("k1")
    settings = HttpSourceSettings(url=server.url, token_file=str(token), header_files={"X-Key": str(key)})
    source, _ = opened(settings, FetchSettings())
    source.read("timestamp.json", 1000)
    token.write_text("second\n")
    source.read("timestamp.json", 1000)
    assert [h["Authorization"] for h in server.headers] == ["Bearer first", "Bearer second"]
    assert server.headers[0]["X-Key"] == "k1"
    token.unlink()
    with pytest.raises(Unavailable, match=r"token_file: .*cannot read it"):
        source.read("timestamp.json", 1000)
    with pytest.raises(ConfigError, match=r"token_file: .*cannot read it"):
        opened(settings, FetchSettings())


def test_a_login_does_not_go_where_others_could_read_it(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret")
    raw = {"kind": "http", "url": "http://models.invalid/x", "token_file": str(token)}
    with pytest.raises(ConfigError, match="expected https where there is a login") as caught:
        parse(HttpSourceSettings, raw, "site")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("location", "wanted"),
    [("/other", "https://host/other"), ("b", "https://host/a/b"), ("https://there:444/x?k=s", "https://there:444/x")],
)  # fmt: skip
def test_a_location_is_taken_from_where_it_was_said(location: str, wanted: str) -> None:
    assert address("https://host/a/x").elsewhere(location).shown == wanted


@pytest.mark.parametrize(
    "location",
    ["http://host/secret", "ftp://host/secret", "https://user:secret@host/", "https://[secret", "https://host/\r\nsecret:"],
)  # fmt: skip
def test_a_location_that_leads_astray_is_not_followed(location: str) -> None:
    with pytest.raises(Unavailable, match="expected to") as caught:
        address("https://host/a").elsewhere(location)
    assert "secret" not in str(caught.value)
