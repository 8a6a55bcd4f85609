"""What every source of signed metadata does: a folder, and the same folder over HTTP and HTTPS."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from authority import Authority
from file_server import FileServer
from publisher import Publisher
from skerry.trust.device import Trust
from skerry.trust.sources import Source
from skerry.updater.settings import FetchSettings, FolderSourceSettings, HttpSourceSettings
from skerry.updater.sources import opened

FETCH = FetchSettings(timeout_s=20)


@pytest.fixture(scope="module")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    return Publisher(tmp_path_factory.mktemp("publisher") / "repository")


@pytest.fixture(params=["folder", "http", "https"])
def source(request: pytest.FixtureRequest, tmp_path: Path, publisher: Publisher) -> Iterator[Source]:
    if request.param == "folder":
        yield opened(FolderSourceSettings(path=str(publisher.folder)), FETCH)[0]
        return
    authority = Authority(tmp_path / "tls")
    context = authority.server("127.0.0.1") if request.param == "https" else None
    with FileServer(publisher.folder.parent, context) as server:
        url = f"{server.url}/repository"
        yield opened(HttpSourceSettings(url=url, ca=str(authority.ca) if context else ""), FETCH)[0]


def test_a_device_trusts_what_it_reads_there(source: Source, publisher: Publisher, tmp_path: Path) -> None:
    trust = Trust(tmp_path / "trust", publisher.anchor)
    assert trust.refresh(source, publisher.now, clock_trusted=True) == publisher.repository.packages


def test_a_file_comes_as_it_is(source: Source, publisher: Publisher) -> None:
    assert source.read("timestamp.json", 10_000) == publisher.file("timestamp.json")


def test_what_is_not_there_is_none(source: Source) -> None:
    assert source.read("2.root.json", 10_000) is None


def test_of_what_is_too_large_one_byte_more_comes(source: Source, publisher: Publisher) -> None:
    assert source.read("1.root.json", 100) == publisher.file("1.root.json")[:101]
