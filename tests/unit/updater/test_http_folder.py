"""Servers that misbehave: none of it takes more than its bounds, and each is told apart."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from authority import Authority
from file_server import FileServer, Manner
from model_folders import weights
from skerry.errors import ConfigError, LinkDown, PackageError, Unavailable
from skerry.models.oci import Blob, sha256
from skerry.updater.fetch import NotThere
from skerry.updater.http_folder import HttpSource
from skerry.updater.web import Forbidden, Patience

CONTENT = weights("http", 200_000)
BLOB = Blob(sha256(CONTENT), len(CONTENT))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FileServer]:
    folder = tmp_path / "blobs" / "sha256"
    folder.mkdir(parents=True)
    (folder / BLOB.digest).write_bytes(CONTENT)
    with FileServer(tmp_path) as server:
        yield server


def read(server: FileServer, start: int = 0) -> bytes:
    return b"".join(HttpSource(server.url, Patience(20)).blob(BLOB, start))


def test_only_what_is_missing_is_asked_for(server: FileServer) -> None:
    assert read(server, 150_000) == CONTENT[150_000:]
    assert server.asked == [(f"/blobs/sha256/{BLOB.digest}", 150_000)]


def test_a_connection_that_breaks_gives_what_came_or_an_error_to_try_again(server: FileServer) -> None:
    server.manner = Manner(cut=100_000)
    got = bytearray()
    source = HttpSource(server.url, Patience(20))
    with contextlib.suppress(LinkDown):
        for piece in source.blob(BLOB, 0):
            got += piece
    assert len(got) <= 100_000
    server.manner = Manner()
    assert bytes(got) + read(server, len(got)) == CONTENT


def test_a_body_without_a_length_is_read_to_its_end(server: FileServer) -> None:
    server.manner = Manner(chunked=True)
    assert read(server) == CONTENT
    assert read(server, 7) == CONTENT[7:]


def test_a_body_without_an_end_is_cut_off(server: FileServer) -> None:
    server.manner = Manner(chunked=True, more=bytes(10_000_000))
    with pytest.raises(PackageError, match="expected 200000 bytes, got more"):
        read(server)


@pytest.mark.parametrize(
    ("start", "headers", "said"),
    [
        (0, {"Content-Length": "300000"}, "expected 200000 bytes, got 300000"),
        (5, {"Content-Range": "bytes 6-199999/200000"}, "expected bytes from 5, got another range"),
        (5, {"Content-Range": "bytes 5-199999/99999999"}, "expected 200000 bytes, got 99999999"),
        (5, {"Content-Range": "none"}, "expected bytes from 5, got another range"),
        (0, {"Content-Encoding": "gzip"}, "expected the file as it is, got it compressed"),
    ],
)
def test_an_answer_that_is_not_the_file_is_refused(
    server: FileServer, start: int, headers: dict[str, str], said: str
) -> None:
    server.manner = Manner(headers=dict(headers))
    with pytest.raises(PackageError, match=said):
        read(server, start)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(404, NotThere), (410, NotThere), (503, LinkDown), (429, LinkDown), (301, Unavailable),
     (401, Unavailable), (403, Forbidden), (416, Unavailable), (206, Unavailable), (204, Unavailable)],
)  # fmt: skip
def test_a_status_is_told_in_our_words(server: FileServer, status: int, kind: type[Exception]) -> None:
    server.manner = Manner(
        status=status, headers={"Retry-After": "7", "Location": "http://elsewhere.invalid/"}
    )
    with pytest.raises(kind, match=f"got {status}") as caught:
        read(server)
    assert type(caught.value) is kind
    if isinstance(caught.value, LinkDown):
        assert caught.value.retry_after_s == 7.0


def test_a_far_end_that_drips_is_given_up(server: FileServer) -> None:
    server.manner = Manner(pause_s=0.001)
    ticks = iter(range(0, 10**9, 5))
    source = HttpSource(server.url, Patience(20, patience_s=60, clock=lambda: next(ticks)))
    with pytest.raises(LinkDown, match=r"expected 256 bytes a second, got \d"):
        list(source.blob(BLOB, 0))


def test_a_far_end_that_says_nothing_is_given_up(server: FileServer) -> None:
    server.manner = Manner(pause_s=1.0)
    with pytest.raises(LinkDown, match="timed out"):
        list(HttpSource(server.url, Patience(0.2)).blob(BLOB, 0))


def test_a_server_with_a_certificate_of_nobody_we_trust_is_not_asked(tmp_path: Path) -> None:
    context = Authority(tmp_path / "tls").server("127.0.0.1")
    with FileServer(tmp_path, context) as server:
        with pytest.raises(LinkDown, match="CERTIFICATE_VERIFY_FAILED"):
            HttpSource(server.url, Patience(20)).document("index.json", 1000)
        assert server.asked == []


@pytest.mark.parametrize(
    "url", ["ftp://host/x", "http://", "http://user:secret@host/x", "https://host/x?token=secret", "/folder"]
)
def test_an_address_that_is_none_is_refused_without_repeating_secrets(url: str) -> None:
    with pytest.raises(ConfigError, match="expected an") as caught:
        HttpSource(url)
    assert "secret" not in str(caught.value)
