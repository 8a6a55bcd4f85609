"""What every source of packages does: a folder, and the same folder over HTTP and HTTPS."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from authority import Authority
from file_server import FileServer
from model_folders import NAME, packed
from registry_far_end import RegistryFarEnd
from skerry.errors import LinkDown, PackageError
from skerry.models import oci
from skerry.models import package as packages
from skerry.models.layout import Packed
from skerry.models.oci import Blob
from skerry.updater.fetch import FolderSource, NotThere, Source, entries, fetch
from skerry.updater.http_folder import HttpSource
from skerry.updater.registry import Registry, RegistrySource
from skerry.updater.store import Store
from skerry.updater.web import Patience, Web
from store_disks import QuickDisk


@pytest.fixture
def package(tmp_path: Path) -> Packed:
    return packed(tmp_path, size=300_000)


@pytest.fixture(params=["folder", "http", "https", "http without ranges", "registry"])
def source(request: pytest.FixtureRequest, tmp_path: Path, package: Packed) -> Iterator[Source]:
    there = tmp_path / "layout"
    if request.param == "folder":
        yield FolderSource(there)
        return
    if request.param == "registry":
        with RegistryFarEnd(there) as far:
            far.manifests.add(package.listing.digest)
            yield RegistrySource(Registry(far.url, "models/tiny", Web(Patience())), "latest")
        return
    trust = context = None
    if request.param == "https":
        authority = Authority(tmp_path / "tls")
        context = authority.server("127.0.0.1")
        trust = ssl.create_default_context(cafile=authority.ca)
    with FileServer(there.parent, context) as server:
        server.manner.ranges = request.param != "http without ranges"
        yield HttpSource(f"{server.url}/layout/", tls=trust)


def blob_of(package: Packed, title: str) -> Blob:
    return next(f.blob for f in package.listing.files if f.title == title)


def test_the_index_names_the_packages(source: Source, package: Packed) -> None:
    (entry,) = entries(source)
    assert (entry.hexadecimal, entry.size, entry.name) == (*package.listing.manifest, "tiny-1.0.0")


@pytest.mark.parametrize("start", [0, 1, 65_536, 299_999, 300_000])
def test_a_blob_comes_from_any_byte_on(source: Source, package: Packed, tmp_path: Path, start: int) -> None:
    blob = blob_of(package, "model.onnx")
    content = (tmp_path / "1.0.0" / "model.onnx").read_bytes()
    if start < blob.size:
        pieces = list(source.blob(blob, start))
        assert b"".join(pieces) == content[start:]
        assert max(map(len, pieces)) <= 1024 * 1024


def test_a_source_is_fetched_from_into_a_store(source: Source, package: Packed, tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", disk=QuickDisk()) as store:
        listing = fetch(store, source, package.listing.manifest)
        assert listing == package.listing
        store.activate(NAME, listing.digest)
        assert packages.load(store.resolve(NAME).folder).title == "tiny@1.0.0"


def test_what_is_not_there_is_said_so(source: Source) -> None:
    with pytest.raises(NotThere, match="is the copy complete"):
        list(source.blob(Blob("0" * 64, 1), 0))
    with pytest.raises(NotThere, match=r"metadata/9\.root\.json|expected signed metadata"):
        source.document("metadata/9.root.json", 1000)


def test_a_size_that_differs_is_no_reason_to_read_on(source: Source, package: Packed) -> None:
    digest, size = blob_of(package, "model.onnx")
    for other in (size - 1, size + 1):
        with pytest.raises(PackageError, match=f"expected {other} bytes"):
            list(source.blob(Blob(digest, other), 0))


def test_a_document_is_not_larger_than_expected(source: Source, tmp_path: Path) -> None:
    there = (tmp_path / "layout" / "index.json").read_bytes()
    assert source.document(oci.INDEX_FILE, len(there)) == there
    with pytest.raises(PackageError, match=f"expected at most {len(there) - 1} bytes, got more"):
        source.document(oci.INDEX_FILE, len(there) - 1)


@pytest.mark.parametrize("name", ["../1.0.0/manifest.json", "/etc/hostname", "", "a/../b", "a//../b"])
def test_nothing_outside_of_it_is_asked_for(source: Source, name: str) -> None:
    with pytest.raises((PackageError, NotThere), match=r"expected a path inside it|no such file"):
        source.document(name, 1000)


def test_a_source_that_is_gone_is_one_to_try_again(tmp_path: Path) -> None:
    with FileServer(tmp_path) as server:
        url = server.url
    with pytest.raises(LinkDown, match="try again"):
        HttpSource(url, Patience(timeout_s=5)).document("index.json", 1000)
    with pytest.raises(NotThere, match="is the copy complete"):
        FolderSource(tmp_path / "unplugged").document("index.json", 1000)
