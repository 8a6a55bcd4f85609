"""Packages and signed metadata through a real registry: Debian's docker-registry, with TLS and a login."""

import json
import select
import shutil
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain, repeat
from pathlib import Path
from typing import Self

import pytest

import docker_registry
from docker_registry import USER, Running
from model_folders import NAME, package_folder, packed
from publisher import Publisher
from skerry.cli import main
from skerry.errors import ConfigError, LinkDown, PackageError, Unavailable
from skerry.models import layout, oci
from skerry.models.layout import Layout, Packed
from skerry.models.oci import Blob
from skerry.models.pull import pull
from skerry.models.push import push
from skerry.models.references import Reference, parse
from skerry.trust.device import Trust
from skerry.trust.packages import Attested, TrustedPackage, choose
from skerry.trust.refusals import RolledBack
from skerry.updater.fetch import NotThere, entries, fetch
from skerry.updater.registry import Login, Registry, RegistrySource
from skerry.updater.settings import FetchSettings, RegistrySourceSettings
from skerry.updater.sources import opened
from skerry.updater.store import Store
from skerry.updater.web import Patience, Web
from store_disks import QuickDisk

pytestmark = docker_registry.needed
SIZE = 300_000
CUTS = (0, 1, 100, 1000, 1500, 2000, 3000, 10_000, 70_000, 150_000, 290_000, 300_500)
"""Bytes from the registry after which a connection breaks: in the handshake, a head, every part of a body."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with docker_registry.running(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def repository(request: pytest.FixtureRequest) -> str:
    """A name of its own for each test."""
    return "models/" + oci.sha256(request.node.name.encode())[:12]


def registry_of(running: Running, repository: str, port: int = 0) -> Registry:
    web = Web(Patience(30), running.tls)
    return Registry(
        f"https://127.0.0.1:{port or running.port}", repository, web, Login(USER, running.password)
    )


def settings_of(running: Running, repository: str, **changes: str) -> RegistrySourceSettings:
    about = {
        "url": running.url, "repository": repository, "ca": running.ca, "username": USER,
        "password_file": running.password,
    }  # fmt: skip
    return RegistrySourceSettings(**(about | changes))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def release(publisher: Publisher, room: Path, version: str) -> Packed:
    """A package in a signed repository."""
    new = layout.pack(package_folder(room / version, version, size=SIZE), publisher.folder)
    publisher.add(
        TrustedPackage(
            digest=f"sha256:{new.listing.digest}", length=new.listing.size, name=NAME, version=version
        )
    )
    return new


class CuttingProxy:
    """Passes bytes on; each connection ends after its share of those from the far end, or to it.

    Args:
        port: of the far end, on loopback.
        shares: bytes for each connection in turn; None is without bounds.
        upwards: bytes to the far end are counted, not those from it.
    """

    def __init__(self, port: int, shares: Iterable[int | None], *, upwards: bool = False) -> None:
        self._far = port
        self._shares = iter(shares)
        self._upwards = upwards
        self.passed = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=32)
        self.port = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept)

    def _accept(self) -> None:
        under_way = []
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                joined = threading.Thread(target=self._join, args=(near, next(self._shares)))
                joined.start()
                under_way.append(joined)
        for joined in under_way:
            joined.join()

    def _join(self, near: socket.socket, share: int | None) -> None:
        with near, socket.create_connection(("127.0.0.1", self._far), 30) as far, suppress(OSError):
            counted = near if self._upwards else far
            while share != 0:
                ready, _, _ = select.select([near, far], [], [], 30)
                for one in ready:
                    most = min(4096, share) if one is counted and share is not None else 4096
                    if not (piece := one.recv(most)):
                        return
                    (far if one is near else near).sendall(piece)
                    self.passed += len(piece)
                    if one is counted and share is not None:
                        share -= len(piece)
                        if not share:
                            break

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()


# Both ways


def test_what_was_pushed_comes_back_as_it_was(running: Running, repository: str, tmp_path: Path) -> None:
    packed(tmp_path, "1.0.0", size=SIZE)
    packed(tmp_path, "1.1.0", size=SIZE)
    registry = registry_of(running, repository)
    done = push(tmp_path / "layout", registry, "latest", chunk=64 * 1024)
    assert sorted(tag for tag, _ in done.packages) == ["tiny-1.0.0", "tiny-1.1.0"]
    pulled = pull(registry, Reference(running.url, repository, "latest"), tmp_path / "out")
    assert files(tmp_path / "out") == files(tmp_path / "layout")
    assert (pulled.metadata, pulled.there) == (0, 9), "the labels of both are the same"


def test_what_is_there_is_not_sent_or_fetched_again(
    running: Running, repository: str, tmp_path: Path
) -> None:
    packed(tmp_path, size=SIZE)
    registry = registry_of(running, repository)
    assert push(tmp_path / "layout", registry, "latest").sent > SIZE
    assert push(tmp_path / "layout", registry, "latest").sent == 0
    where = Reference(running.url, repository, "tiny-1.0.0")
    assert pull(registry, where, tmp_path / "out").received > SIZE
    weights = next(p for p in (tmp_path / "out" / "blobs" / "sha256").iterdir() if p.stat().st_size == SIZE)
    assert pull(registry, where, tmp_path / "out").received == 0
    weights.write_bytes(bytes(SIZE))
    assert pull(registry, where, tmp_path / "out").received == SIZE
    assert files(tmp_path / "out") == files(tmp_path / "layout")


def test_one_package_is_pulled_by_its_digest(running: Running, repository: str, tmp_path: Path) -> None:
    one = packed(tmp_path, "1.0.0")
    packed(tmp_path, "1.1.0")
    registry = registry_of(running, repository)
    push(tmp_path / "layout", registry, "latest")
    where = Reference(running.url, repository, "latest", f"sha256:{one.listing.digest}")
    assert [p.config.version for p in pull(registry, where, tmp_path / "out").packages] == ["1.0.0"]
    with pytest.raises(NotThere, match="MANIFEST_UNKNOWN"):
        pull(registry, where._replace(digest=f"sha256:{'0' * 64}"), tmp_path / "out")


def test_what_the_tag_listed_stays_listed(running: Running, repository: str, tmp_path: Path) -> None:
    publisher = Publisher(tmp_path / "repository")
    release(publisher, tmp_path, "1.0.0")
    registry = registry_of(running, repository)
    push(publisher.folder, registry, "latest")
    packed(tmp_path / "other", "2.0.0")
    push(tmp_path / "other" / "layout", registry, "latest")
    metadata, source = opened(settings_of(running, repository), FetchSettings())
    assert sorted(e.name for e in entries(source)) == ["tiny-1.0.0", "tiny-2.0.0"]
    assert metadata.read("timestamp.json", 10_000) == publisher.file("timestamp.json")


# What is refused


def test_another_content_of_a_version_is_refused_unless_forced(
    running: Running, repository: str, tmp_path: Path
) -> None:
    packed(tmp_path / "one")
    packed(tmp_path / "other", size=5000)
    registry = registry_of(running, repository)
    push(tmp_path / "one" / "layout", registry, "latest")
    for tag in ("latest", "another"):
        with pytest.raises(ConfigError, match="with other content"):
            push(tmp_path / "other" / "layout", registry, tag)
    new = push(tmp_path / "other" / "layout", registry, "latest", force=True).packages[0][1]
    (entry,) = entries(RegistrySource(registry, "latest"))
    assert entry.hexadecimal == new.listing.digest


def test_older_metadata_is_refused_unless_forced(running: Running, repository: str, tmp_path: Path) -> None:
    publisher = Publisher(tmp_path / "repository")
    release(publisher, tmp_path, "1.0.0")
    shutil.copytree(publisher.folder, tmp_path / "stale")
    publisher.renew(1.0)
    registry = registry_of(running, repository)
    push(publisher.folder, registry, "latest")
    with pytest.raises(ConfigError, match="expected metadata that is newer than timestamp"):
        push(tmp_path / "stale", registry, "latest")
    push(tmp_path / "stale", registry, "latest", force=True)


def test_a_damaged_layout_is_not_sent(running: Running, repository: str, tmp_path: Path) -> None:
    package = packed(tmp_path, size=SIZE)
    weights = next(f.blob for f in package.listing.files if f.blob.size == SIZE)
    (tmp_path / "layout" / "blobs" / "sha256" / weights.digest).write_bytes(bytes(SIZE))
    registry = registry_of(running, repository)
    with pytest.raises(PackageError, match=r"model\.onnx: expected sha256"):
        push(tmp_path / "layout", registry, "latest")
    with pytest.raises(NotThere):
        entries(RegistrySource(registry, "latest"))


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        (
            {"password_file": "WRONG"},
            Unavailable,
            r"got 401 UNAUTHORIZED \(it wants a login, or another one\)",
        ),
        ({"username": "", "password_file": ""}, Unavailable, r"got 401 \(it wants a login: username"),
        ({"ca": ""}, LinkDown, "CERTIFICATE_VERIFY_FAILED"),
        ({"tag": "none"}, NotThere, "got 404 MANIFEST_UNKNOWN"),
    ],
)
def test_a_way_in_that_is_none_is_said_so(
    running: Running, tmp_path: Path, changes: dict[str, str], kind: type[Exception], said: str
) -> None:
    (tmp_path / "wrong").write_text("wrong-pass")
    if "WRONG" in changes.values():
        changes = {"password_file": str(tmp_path / "wrong")}
    metadata, source = opened(settings_of(running, "models/none", **changes), FetchSettings())
    for ask in (lambda: entries(source), lambda: metadata.read("timestamp.json", 1000)):
        with pytest.raises(kind, match=said) as caught:
            ask()
        assert "wrong-pass" not in str(caught.value)


def test_a_registry_whose_disk_lies_changes_nothing(
    running: Running, repository: str, tmp_path: Path
) -> None:
    package = packed(tmp_path, version="7.7.7", size=SIZE)
    push(tmp_path / "layout", registry_of(running, repository), "latest")
    for blob in (package.listing.manifest, *package.listing.blobs):
        path = next(running.storage.glob(f"**/blobs/sha256/{blob.digest[:2]}/{blob.digest}/data"))
        good = path.read_bytes()
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        room = tmp_path / blob.digest[:8]
        with Store.open(room, disk=QuickDisk()) as store:
            _, source = opened(settings_of(running, repository), FetchSettings())
            # Of a manifest or label that is changed, docker-registry itself may notice.
            with pytest.raises((PackageError, Unavailable)):
                fetch(store, source, package.listing.manifest)
            assert store.packages() == ()
            path.write_bytes(good)
            assert fetch(store, source, package.listing.manifest) == package.listing


# Broken connections


def test_a_device_goes_on_wherever_the_connection_broke(
    running: Running, repository: str, tmp_path: Path
) -> None:
    package = packed(tmp_path, version="3.0.0", size=SIZE)
    push(tmp_path / "layout", registry_of(running, repository), "latest")
    broken = 0
    with (
        CuttingProxy(
            running.port, chain((c for cut in CUTS for c in (cut, None, None)), repeat(None))
        ) as proxy,
        Store.open(tmp_path / "store", disk=QuickDisk()) as store,
    ):
        source = RegistrySource(registry_of(running, repository, proxy.port), "latest")
        while package.listing.digest not in store.packages():
            try:
                assert fetch(store, source, package.listing.manifest) == package.listing
            except LinkDown:
                broken += 1
                assert broken < 3 * len(CUTS)
    assert broken >= 3


def test_the_weights_go_on_where_they_ended(running: Running, repository: str, tmp_path: Path) -> None:
    """One connection each: so many bytes of it, then the rest over another."""
    package = packed(tmp_path, version="4.0.0", size=SIZE)
    push(tmp_path / "layout", registry_of(running, repository), "latest")
    weights = next(f.blob for f in package.listing.files if f.blob.size == SIZE)
    for cut in CUTS:
        # The first connection is asked who there is, the second has the answer.
        with CuttingProxy(running.port, chain((None, None, cut), repeat(None))) as proxy:
            registry = registry_of(running, repository, proxy.port)
            registry.manifest("latest", 10_000)
            got = bytearray()
            with suppress(LinkDown):
                for piece in registry.blob(weights, 0):
                    got += piece
            assert len(got) < max(cut, 1)
            came = len(got)
            for piece in registry.blob(weights, came):
                got += piece
        assert oci.sha256(bytes(got)) == weights.digest
        assert came > 0 or cut < 10_000
        assert proxy.passed < SIZE + (cut - came) + 40_000, "what had come was fetched again"


@pytest.mark.parametrize("cut", [0, 1000, 20_000, 101_000])
def test_a_push_goes_on_wherever_the_connection_broke(
    running: Running, repository: str, tmp_path: Path, cut: int
) -> None:
    packed(tmp_path, version="5.0.0", size=SIZE)
    shares = chain(repeat(None, 9), (cut, None) * 4, repeat(None))
    with CuttingProxy(running.port, shares, upwards=True) as proxy:
        registry = registry_of(running, repository, proxy.port)
        push(tmp_path / "layout", registry, "latest", chunk=100_000, wait=lambda _: None)
    pull(registry_of(running, repository), Reference(running.url, repository, "latest"), tmp_path / "out")
    assert files(tmp_path / "out") == files(tmp_path / "layout")


def test_a_push_goes_on_with_what_the_registry_has_already(
    running: Running, repository: str, tmp_path: Path
) -> None:
    packed(tmp_path, version="5.5.0", size=SIZE)
    broken, breaking = 0, False

    def shares() -> Iterator[int | None]:
        nonlocal broken, breaking
        while True:
            if breaking:
                broken, breaking = broken + 1, False
                yield 0
            else:
                yield None

    def told(_what: str, done: int, size: int) -> None:
        nonlocal breaking
        breaking = 0 < done < size

    with CuttingProxy(running.port, shares(), upwards=True) as proxy:
        registry = registry_of(running, repository, proxy.port)
        push(tmp_path / "layout", registry, "latest", chunk=100_000, told=told, wait=lambda _: None)
    assert broken == 2
    assert proxy.passed < SIZE + 100_000, "what was there already was sent again"


def test_a_push_whose_session_is_gone_begins_anew(running: Running, repository: str, tmp_path: Path) -> None:
    packed(tmp_path, version="6.0.0", size=SIZE)

    forgotten = False

    def told(_what: str, done: int, size: int) -> None:
        nonlocal forgotten
        if 0 < done < size and not forgotten:
            forgotten = True
            running.forget_sessions()

    registry = registry_of(running, repository)
    push(tmp_path / "layout", registry, "latest", chunk=100_000, told=told, wait=lambda _: None)
    assert forgotten
    pull(registry, Reference(running.url, repository, "latest"), tmp_path / "out")
    assert files(tmp_path / "out") == files(tmp_path / "layout")


def test_a_registry_that_is_gone_is_given_up_after_a_few_attempts(tmp_path: Path) -> None:
    packed(tmp_path)
    waited: list[float] = []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    registry = Registry(f"http://127.0.0.1:{port}", "models/tiny", Web(Patience(5)))
    with pytest.raises(LinkDown, match="try again"):
        push(tmp_path / "layout", registry, "latest", wait=waited.append)
    assert waited == [0.5, 1.0, 2.0, 4.0]


# From the one who signs to the device


def test_a_signed_package_serves_after_a_way_through_a_registry(
    running: Running, repository: str, tmp_path: Path
) -> None:
    publisher = Publisher(tmp_path / "repository")
    registry = registry_of(running, repository)
    metadata, source = opened(settings_of(running, repository), FetchSettings())
    trust = Trust(tmp_path / "trust", publisher.anchor)
    with Store.open(tmp_path / "store", disk=QuickDisk()) as store:
        for version in ("1.0.0", "1.1.0"):
            release(publisher, tmp_path, version)
            push(publisher.folder, registry, "latest")
            package = choose(trust.refresh(metadata, publisher.now, clock_trusted=True), NAME)
            trust.admit(package)
            fetch(store, source, package.manifest)
            store.activate(NAME, package.manifest.digest)
            assert store.config(store.slots(NAME).current or "").version == version
    stale = Publisher(tmp_path / "stale", keys=publisher.keys)
    push(stale.folder, registry, "stale")
    old, _ = opened(settings_of(running, repository, tag="stale"), FetchSettings())
    with pytest.raises(RolledBack):
        trust.refresh(old, publisher.now, clock_trusted=True)


def test_a_pulled_repository_is_one_that_devices_trust(
    running: Running, repository: str, tmp_path: Path
) -> None:
    publisher = Publisher(tmp_path / "repository")
    release(publisher, tmp_path, "1.0.0")
    registry = registry_of(running, repository)
    push(publisher.folder, registry, "latest")
    done = pull(registry, Reference(running.url, repository, "latest"), tmp_path / "stick")
    there = {name: raw for name, raw in files(publisher.folder).items() if name != "signing.json"}
    assert files(tmp_path / "stick") == there
    assert done.metadata == len(publisher.files)


def test_what_was_attested_goes_along(running: Running, repository: str, tmp_path: Path) -> None:
    publisher = Publisher(tmp_path / "repository")
    new = layout.pack(package_folder(tmp_path / "1.0.0"), publisher.folder)
    statement = b'{"measured": "somewhere"}'
    digest = oci.sha256(statement)
    (publisher.folder / "blobs" / "sha256" / digest).write_bytes(statement)
    said = Attested(device_class="x86", statement=f"sha256:{digest}", verdict="met", memory_mib=1)
    publisher.add(
        TrustedPackage(
            digest=f"sha256:{new.listing.digest}", length=new.listing.size, name=NAME, version="1.0.0",
            attestations=(said,),
        )
    )  # fmt: skip
    registry = registry_of(running, repository)
    push(publisher.folder, registry, "latest")
    pull(registry, Reference(running.url, repository, "latest"), tmp_path / "stick")
    assert (tmp_path / "stick" / "blobs" / "sha256" / digest).read_bytes() == statement
    (publisher.folder / "blobs" / "sha256" / digest).write_bytes(b"{}")
    with pytest.raises(PackageError, match="a statement: expected sha256"):
        push(publisher.folder, registry, "latest")


# Commands


def test_the_commands_push_and_pull(
    running: Running, repository: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = packed(tmp_path)
    login = ["--username", USER, "--password-file", running.password, "--ca", running.ca]
    where = f"127.0.0.1:{running.port}/{repository}"
    assert main(["model", "push", str(tmp_path / "layout"), f"{where}:site", *login, "--json"]) == 0
    pushed = json.loads(capsys.readouterr().out)
    assert pushed["packages"][0]["digest"] == f"sha256:{package.listing.digest}"
    assert main(["model", "pull", f"{where}:site", "--out", str(tmp_path / "out"), *login]) == 0
    assert "every hash compared" in capsys.readouterr().out
    by_digest = [
        f"{where}@{pushed['packages'][0]['digest']}",
        "--out",
        str(tmp_path / "out"),
        *login,
        "--json",
    ]
    assert main(["model", "pull", *by_digest]) == 0
    assert json.loads(capsys.readouterr().out)["received_bytes"] == 0
    assert main(["model", "pull", f"{where}:none", "--out", str(tmp_path / "out"), *login]) == 69
    assert "MANIFEST_UNKNOWN" in capsys.readouterr().err
    assert main(["model", "push", str(tmp_path / "1.0.0"), where, *login]) == 65
    assert main(["model", "push", str(tmp_path / "layout"), f"{where}@sha256:{'0' * 64}", *login]) == 78


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("host/a/b", ("https://host", "a/b", "latest", "")),
        ("host:5000/a:v1", ("https://host:5000", "a", "v1", "")),
        ("http://127.0.0.1:5000/a", ("http://127.0.0.1:5000", "a", "latest", "")),
        (f"host/a:x@sha256:{'1' * 64}", ("https://host", "a", "x", f"sha256:{'1' * 64}")),
    ],
)
def test_a_reference_is_taken_apart(text: str, wanted: tuple[str, ...]) -> None:
    assert parse(text) == wanted


@pytest.mark.parametrize(
    "text", ["", "host", "host/", "user:secret@host/a", "ftp://host/a", "host/a:", "host/a@sha256:12"]
)
def test_a_reference_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert "secret" not in str(caught.value)


def test_a_layout_has_blobs_of_its_own(tmp_path: Path) -> None:
    """What `Layout.blob` gives, cut into pieces for sending, is the blob from any byte on."""
    from skerry.models.push import _of_layout

    package = packed(tmp_path, size=SIZE)
    blob = next(f.blob for f in package.listing.files if f.blob.size == SIZE)
    whole = b"".join(Layout(tmp_path / "layout").blob(Blob(*blob)))
    for at, size in ((0, SIZE), (1, 70_000), (65_536, 65_536), (SIZE - 1, 1), (0, 1)):
        assert b"".join(_of_layout(tmp_path / "layout", blob)(at, size)) == whole[at : at + size]
