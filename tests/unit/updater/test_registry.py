"""Registries that want a login, point elsewhere, or lie: each is told apart, and no secret goes astray."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from file_server import FileServer, Manner
from model_folders import packed
from publisher import Publisher
from registry_far_end import PASSWORD, USER, RegistryFarEnd
from skerry.errors import ConfigError, LinkDown, PackageError, Unavailable
from skerry.models import artifacts, oci
from skerry.models.oci import Blob
from skerry.settings import parse
from skerry.trust.device import Trust
from skerry.updater.fetch import NotThere, Source, entries
from skerry.updater.registry import Login, Registry, RegistryMetadata, RegistrySource
from skerry.updater.settings import FetchSettings, RegistrySourceSettings
from skerry.updater.sources import opened
from skerry.updater.web import Forbidden, Patience, Web


@pytest.fixture
def password(tmp_path: Path) -> Path:
    file = tmp_path / "password"
    file.write_text(f"{PASSWORD}\n")
    return file


@pytest.fixture
def far(tmp_path: Path) -> Iterator[RegistryFarEnd]:
    package = packed(tmp_path, size=200_000)
    with RegistryFarEnd(tmp_path / "layout") as far:
        far.manifests.add(package.listing.digest)
        yield far


def source_of(far: RegistryFarEnd, login: Login | None = None, tag: str = "latest") -> RegistrySource:
    return RegistrySource(Registry(far.url, "models/tiny", Web(Patience(20)), login), tag)


def paths(far: FileServer) -> list[str]:
    return [path.partition("/v2/models/tiny/")[2] or path for path, _ in far.asked]


# Logins


@pytest.mark.parametrize("login", ["basic", "token"])
def test_a_login_is_shown_to_whoever_asks_for_it(far: RegistryFarEnd, password: Path, login: str) -> None:
    far.login = login  # type: ignore[assignment]  # a parameter of the test, one of its literals
    source = source_of(far, Login(USER, str(password)))
    (entry,) = entries(source)
    asked = len(far.asked)
    assert b"".join(source.blob(Blob(entry.hexadecimal, entry.size), 0))
    assert "Authorization" not in far.headers[0]
    assert all("Authorization" in h for h in far.headers[asked:])


def test_a_token_that_is_over_is_exchanged_once(far: RegistryFarEnd, password: Path) -> None:
    far.login = "token"
    source = source_of(far, Login(USER, str(password)))
    entries(source)
    far.token = "t-2"
    entries(source)
    assert sum(path.startswith("/token") for path in paths(far)) == 2
    far.given = b'{"token": "wrong"}'
    far.token = "t-3"
    with pytest.raises(Unavailable, match=r"got 401 UNAUTHORIZED \(it wants a login, or another one\)"):
        entries(source)


def test_a_token_of_a_file_goes_to_the_registry_alone(far: RegistryFarEnd, tmp_path: Path) -> None:
    far.login = "token"
    (tmp_path / "token").write_text("t-1")
    entries(source_of(far, Login(token_file=str(tmp_path / "token"))))
    assert not any(path.startswith("/token") for path in paths(far))


@pytest.mark.parametrize("login", ["basic", "unsaid"])
def test_without_a_login_it_is_said_that_one_is_wanted(far: RegistryFarEnd, login: str) -> None:
    far.login = login  # type: ignore[assignment]  # a parameter of the test, one of its literals
    with pytest.raises(Unavailable, match=r"got 401 \(it wants a login: username and password_file\)"):
        entries(source_of(far))


def test_a_wrong_password_is_said_so_and_not_shown(far: RegistryFarEnd, password: Path) -> None:
    password.write_text("wr0ng")
    for login in ("basic", "token"):
        far.login = login  # type: ignore[assignment]  # a parameter of the test, one of its literals
        with pytest.raises(Unavailable, match=r"got 401 UNAUTHORIZED \(it wants a login") as caught:
            entries(source_of(far, Login(USER, str(password))))
        assert "wr0ng" not in str(caught.value)


@pytest.mark.parametrize(
    "realm", ["http://elsewhere.invalid/token", "ftp://127.0.0.1/token", "http://user:x@127.0.0.1/"]
)
def test_a_password_does_not_go_where_others_could_read_it(
    far: RegistryFarEnd, password: Path, realm: str
) -> None:
    far.login, far.realm = "token", realm
    with pytest.raises(
        Unavailable, match=r"expected https where a login goes|expected to be sent to an http"
    ):
        entries(source_of(far, Login(USER, str(password))))


@pytest.mark.parametrize(
    "given", [b"", b"{}", b"[]", b'{"token": 5}', b'{"token": "a\\r\\nX: y"}', b"<html>", b"\xff"]
)
def test_a_token_that_is_none_is_said_so(far: RegistryFarEnd, password: Path, given: bytes) -> None:
    far.login, far.given = "token", given or b" "
    with pytest.raises(Unavailable, match="expected a token, got something else"):
        entries(source_of(far, Login(USER, str(password))))


def test_a_login_over_a_line_that_others_read_is_refused(password: Path) -> None:
    with pytest.raises(ConfigError, match="expected https where there is a login"):
        Registry("http://models.invalid", "tiny", Web(Patience()), Login(USER, str(password)))


def test_half_a_login_is_refused(password: Path) -> None:
    with pytest.raises(ConfigError, match="expected username and password_file together"):
        Login(USER)
    with pytest.raises(ConfigError, match=r"password_file: .*cannot read it"):
        Login(USER, str(password.with_name("none")))


# Redirects


def test_a_blob_elsewhere_is_followed_to_without_the_login(far: RegistryFarEnd, password: Path) -> None:
    far.login = "basic"
    source = source_of(far, Login(USER, str(password)))
    (entry,) = entries(source)
    with FileServer(far.folder) as elsewhere:
        where = f"{elsewhere.url}/blobs/sha256/{entry.hexadecimal}?signature=secret"
        far.manner = Manner(status=307, headers={"Location": where})
        assert oci.sha256(b"".join(source.blob(Blob(entry.hexadecimal, entry.size), 0))) == entry.hexadecimal
        assert [path for path, _ in elsewhere.asked] == [where.removeprefix(elsewhere.url)]
        assert "Authorization" not in elsewhere.headers[0]
        assert list(source.blob(Blob(entry.hexadecimal, entry.size), 100))
        assert elsewhere.asked[-1][1] == 100
        elsewhere.manner = Manner(status=403)
        with pytest.raises(Forbidden) as caught:
            list(source.blob(Blob(entry.hexadecimal, entry.size), 0))
        assert "secret" not in str(caught.value)


def test_redirects_come_to_an_end(far: RegistryFarEnd) -> None:
    far.manner = Manner(status=302, headers={"Location": "/v2/models/tiny/manifests/latest"})
    with pytest.raises(Unavailable, match="expected at most 5 redirects, got more"):
        entries(source_of(far))
    assert len(far.asked) == 6


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("", "without a Location"),
        ("ftp://x/", "expected to be sent to an http"),
        ("http://a:b@x/", "expected to be"),
    ],
)
def test_a_redirect_to_nowhere_is_said_so(far: RegistryFarEnd, location: str, said: str) -> None:
    far.manner = Manner(status=301, headers={"Location": location})
    with pytest.raises(Unavailable, match=said):
        entries(source_of(far))


# Lies


@pytest.mark.parametrize(
    ("manner", "kind", "said"),
    [
        (Manner(status=404), NotThere, "got 404"),
        (Manner(status=429, headers={"Retry-After": "9"}), LinkDown, r"got 429 \(try later\)"),
        (Manner(status=500), LinkDown, r"got 500 \(try later\)"),
        (Manner(status=403), Forbidden, r"got 403 \(see who may read it\)"),
        (Manner(status=418), Unavailable, "got 418"),
        (Manner(headers={"Content-Type": "text/html"}), LinkDown, "got a page for people"),
        (Manner(headers={"Content-Encoding": "gzip"}), PackageError, "got it compressed"),
        (Manner(headers={"Content-Length": "300000"}), PackageError, "expected 200000 bytes, got 300000"),
        (Manner(chunked=True, more=bytes(10_000_000)), PackageError, "expected 200000 bytes, got more"),
        (Manner(raw=b"HTTP/1.1 100 Continue\r\nX: " + b"x" * 60_000 + b"\r\n\r\n", repeat=200),
         PackageError, "expected an answer with an end"),
        (Manner(raw=b"\x15\x03\x01\x00\x02"), LinkDown, "try again"),
    ],
)  # fmt: skip
def test_a_registry_that_answers_something_else_is_told_apart(
    far: RegistryFarEnd, manner: Manner, kind: type[Exception], said: str
) -> None:
    weights = next(
        path for path in (far.folder / "blobs" / "sha256").iterdir() if path.stat().st_size == 200_000
    )
    source = source_of(far)
    far.manner = manner
    with pytest.raises(kind, match=said) as caught:
        list(source.blob(Blob(weights.name, 200_000), 0))
    assert type(caught.value) is kind


def test_what_the_registry_calls_an_error_is_told(far: RegistryFarEnd) -> None:
    far.manner = Manner(
        status=404, headers={"Content-Type": "application/json"},
        more=b'{"errors":[{"code":"NAME_UNKNOWN","message":"\x1b[2J"}]}',
    )  # fmt: skip
    far.manner.headers["Content-Length"] = str(len(far.manner.more))
    with pytest.raises(NotThere, match="got 404 NAME_UNKNOWN"):
        entries(source_of(far, tag="none"))


def test_what_no_tag_leads_to_is_not_there(far: RegistryFarEnd) -> None:
    with pytest.raises(NotThere, match="manifests/none: expected it, got 404"):
        entries(source_of(far, tag="none"))


def test_a_tag_of_one_package_is_an_index_of_it(far: RegistryFarEnd) -> None:
    (digest,) = far.manifests
    far.tags["tiny-1.0.0"] = digest
    (entry,) = entries(source_of(far, tag="tiny-1.0.0"))
    assert entry.hexadecimal == digest


def test_a_tag_of_something_else_is_refused(far: RegistryFarEnd) -> None:
    (far.folder / "image.json").write_text(
        json.dumps({"mediaType": oci.MANIFEST_TYPE, "artifactType": "x/y"})
    )
    far.tags["latest"] = "image.json"
    with pytest.raises(PackageError, match="expected packages or one of them, got something else"):
        entries(source_of(far))


# Settings


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"url": "registry.invalid"}, "url: expected http or https://host"),
        ({"url": "https://user:x@registry.invalid"}, "url: expected http or https://host"),
        ({"url": "https://registry.invalid:99999"}, "url: expected http or https://host"),
        ({"url": "https://registry.invalid?x=1"}, "url: expected an address without"),
        ({"url": "http://r.invalid", "token_file": "/x"}, "url: expected https where there is a login"),
        ({"username": "boat"}, "username: expected it together with password_file"),
        ({"url": "https://registry.invalid/v2"}, "expected the registry alone, got a path"),
        ({"repository": "../x"}, "expected a repository of small letters"),
        ({"repository": "Models"}, "expected a repository of small letters"),
        ({"repository": "a/b?x=1"}, "expected a repository of small letters"),
        ({"tag": "a/b"}, "tag: expected at most 128 letters"),
        ({"tag": "a b"}, "tag: expected at most 128 letters"),
        ({"ca": "/nonexistent.pem"}, r"tls\.ca: "),
        ({"username": "a:b", "password_file": "/x"}, "without a colon"),
    ],
)  # fmt: skip
def test_settings_that_lead_nowhere_are_refused(changes: dict[str, str], said: str) -> None:
    about = {"url": "https://registry.invalid", "repository": "models", **changes}
    with pytest.raises(ConfigError, match=said):
        opened(parse(RegistrySourceSettings, {"kind": "registry", **about}, "site"), FetchSettings())


# Metadata


def put(folder: Path, content: bytes) -> Blob:
    blob = Blob(oci.sha256(content), len(content))
    (folder / "blobs" / "sha256" / blob.digest).write_bytes(content)
    return blob


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    return Publisher(tmp_path / "repository")


def publish(far: RegistryFarEnd, publisher: Publisher, index: bool = True) -> Blob:
    """The artifact of the metadata, and an index in which it is."""
    manifest = put(
        far.folder,
        artifacts.make_metadata({name: put(far.folder, raw) for name, raw in publisher.files.items()}),
    )
    far.manifests.add(manifest.digest)
    content = oci.make_index([artifacts.make_metadata_entry(manifest)])
    (far.folder / "index.json").write_bytes(content)
    far.tags["latest"] = "index.json" if index else manifest.digest
    return manifest


def metadata_of(far: RegistryFarEnd) -> RegistryMetadata:
    return RegistryMetadata(Registry(far.url, "models/tiny", Web(Patience(20))), "latest")


@pytest.mark.parametrize("index", [True, False])
def test_a_device_trusts_metadata_of_a_registry(
    far: RegistryFarEnd, publisher: Publisher, tmp_path: Path, index: bool
) -> None:
    publish(far, publisher, index)
    source, trust = metadata_of(far), Trust(tmp_path / "trust", publisher.anchor)
    trust.refresh(source, publisher.now, clock_trusted=True)
    publisher.renew(1.0)
    publish(far, publisher, index)
    assert source.read("timestamp.json", 10_000) == publisher.file("timestamp.json")
    assert trust.refresh(source, publisher.now, clock_trusted=True) == publisher.repository.packages


def test_the_manifest_of_metadata_that_is_known_is_not_asked_for_again(
    far: RegistryFarEnd, publisher: Publisher
) -> None:
    manifest = publish(far, publisher)
    source = metadata_of(far)
    for _ in range(3):
        assert source.read("9.root.json", 1000) is None
    assert paths(far).count(f"manifests/sha256:{manifest.digest}") == 1


def test_of_metadata_that_is_too_large_one_byte_more_comes(far: RegistryFarEnd, publisher: Publisher) -> None:
    publish(far, publisher)
    assert metadata_of(far).read("1.root.json", 100) == publisher.file("1.root.json")[:101]


def spoil_file(far: RegistryFarEnd, publisher: Publisher, _manifest: Blob) -> None:
    path = far.folder / "blobs" / "sha256" / oci.sha256(publisher.file("timestamp.json"))
    path.write_bytes(path.read_bytes().replace(b"timestamp", b"timestomp"))


def spoil_manifest(far: RegistryFarEnd, _publisher: Publisher, manifest: Blob) -> None:
    path = far.folder / "blobs" / "sha256" / manifest.digest
    path.write_bytes(path.read_bytes() + b" ")


def no_metadata(far: RegistryFarEnd, _publisher: Publisher, _manifest: Blob) -> None:
    (far.folder / "index.json").write_bytes(oci.make_index([]))


def traversal(far: RegistryFarEnd, publisher: Publisher, _manifest: Blob) -> None:
    content = artifacts.make_metadata(
        {"../timestamp.json": put(far.folder, publisher.file("timestamp.json"))}
    )
    far.manifests.add(put(far.folder, content).digest)
    far.tags["latest"] = oci.sha256(content)


def no_manifest(far: RegistryFarEnd, _publisher: Publisher, _manifest: Blob) -> None:
    (far.folder / "index.json").write_bytes(b"[" * 10_000)


@pytest.mark.parametrize(
    ("spoil", "kind", "said"),
    [
        (spoil_file, PackageError, r"timestamp\.json: expected sha256"),
        (spoil_manifest, PackageError, "metadata: expected sha256"),
        (no_metadata, NotThere, "expected signed metadata, got 0 of it"),
        (traversal, PackageError, "expected names of files, each once"),
        (no_manifest, PackageError, "expected a manifest of a registry"),
    ],
)
def test_metadata_that_is_not_what_it_should_be_is_refused(
    far: RegistryFarEnd, publisher: Publisher, spoil: Callable[..., None], kind: type[Exception], said: str
) -> None:
    spoil(far, publisher, publish(far, publisher))
    with pytest.raises(kind, match=said):
        metadata_of(far).read("timestamp.json", 100_000)


def test_a_layout_in_a_registry_has_its_metadata_as_a_folder_has(
    far: RegistryFarEnd, publisher: Publisher
) -> None:
    publish(far, publisher)
    source: Source = source_of(far)
    assert source.document("metadata/timestamp.json", 10_000) == publisher.file("timestamp.json")
    assert source.document("oci-layout", 100) == oci.LAYOUT
    with pytest.raises(NotThere, match="is the copy complete"):
        source.document("metadata/9.root.json", 1000)
    with pytest.raises(PackageError, match="expected at most 10 bytes, got more"):
        source.document("metadata/timestamp.json", 10)
    shutil.rmtree(far.folder / "blobs")
    with pytest.raises(NotThere):
        source.document("metadata/timestamp.json", 10_000)
