"""Package folders as OCI image layouts, and layouts that lie."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forged_layouts import Forger
from model_folders import package_folder, packed
from skerry.errors import ConfigError, PackageError
from skerry.models import layout, oci
from skerry.models.layout import Layout, pack, select, unpack, verify
from skerry.models.oci import Limits


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_unpacking_gives_the_folder_that_was_packed_byte_for_byte(tmp_path: Path) -> None:
    folder = package_folder(tmp_path / "package")
    (folder / "docs").mkdir()
    (folder / "docs" / "card v1.md").write_text("for people")
    (folder / "empty").write_bytes(b"")
    pack(folder, tmp_path / "layout")
    package = unpack(tmp_path / "layout", tmp_path / "out")
    assert package.title == "tiny@1.0.0"
    assert contents(tmp_path / "out") == contents(folder)


def test_the_same_folder_gives_the_same_digest_wherever_and_whenever(tmp_path: Path) -> None:
    first = pack(package_folder(tmp_path / "a"), tmp_path / "one")
    other = package_folder(tmp_path / "b")
    for n, path in enumerate(sorted(other.iterdir(), reverse=True)):
        os.utime(path, (n, n))
        path.chmod(0o600 + n)
    second = pack(other, tmp_path / "two")
    assert first == second
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert first.listing.digest == "4379ee5a34e85c84a4cce466fe22ae957b3fffb57196da2750193767aab6fdc2"


def test_a_changed_byte_or_epoch_gives_another_digest(tmp_path: Path) -> None:
    folder = package_folder(tmp_path / "a")
    digests = {pack(folder, tmp_path / "one").listing.digest}
    digests.add(pack(folder, tmp_path / "two", security_epoch=1).listing.digest)
    (folder / "notes.md").write_text("a")
    digests.add(pack(folder, tmp_path / "three").listing.digest)
    (folder / "notes.md").write_text("b")
    digests.add(pack(folder, tmp_path / "four").listing.digest)
    assert len(digests) == 4


def test_one_layout_holds_many_packages_and_a_digest_names_one(tmp_path: Path) -> None:
    one, two = packed(tmp_path, "1.0.0"), packed(tmp_path, "2.0.0")
    there = tmp_path / "layout"
    assert {e.name for e in Layout(there).entries()} == {"tiny-1.0.0", "tiny-2.0.0"}
    assert verify(there, one.listing.digest) == one
    assert verify(there, f"sha256:{two.listing.digest}") == two
    assert select(there, two.listing.digest[:8]).hexadecimal == two.listing.digest
    with pytest.raises(PackageError, match=r"expected one package, got 2 .*tiny-1\.0\.0"):
        verify(there)
    with pytest.raises(PackageError, match="expected one package 0000, got 0"):
        verify(there, "0000")


def test_packing_again_changes_nothing_and_another_content_of_a_version_is_refused(tmp_path: Path) -> None:
    packed(tmp_path)
    before = contents(tmp_path / "layout")
    pack(tmp_path / "1.0.0", tmp_path / "layout")
    assert contents(tmp_path / "layout") == before
    (tmp_path / "1.0.0" / "notes.md").write_text("new")
    with pytest.raises(ConfigError, match=r"expected another version than tiny-1\.0\.0"):
        pack(tmp_path / "1.0.0", tmp_path / "layout")
    assert json.loads(before["index.json"]) == json.loads((tmp_path / "layout" / "index.json").read_bytes())


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    folder = package_folder(tmp_path / "a")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    with pytest.raises(ConfigError, match="expected a new folder or an image layout"):
        pack(folder, tmp_path / "mine")
    pack(folder, tmp_path / "layout")
    with pytest.raises(ConfigError, match="expected a new folder"):
        unpack(tmp_path / "layout", tmp_path / "mine", force=True)
    unpack(tmp_path / "layout", tmp_path / "a", force=True)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "link").symlink_to("/etc/passwd"), "expected a file, got a link"),
        (lambda f: (f / "sub").symlink_to("/etc"), "expected a file, got a link"),
        (lambda f: os.mkfifo(f / "pipe"), "expected a file, got a link or something else"),
        (lambda f: (f / ".git").mkdir(), r"expected a path inside the package .*'.git'"),
        (lambda f: (f / "a\nb").write_text("x"), r"expected a path inside"),
        (lambda f: (f / "a" / "b" / "c" / "d" / "e").mkdir(parents=True), "at most 4 names"),
        (lambda f: [(f / f"n{n}").write_text("x") for n in range(300)], "expected at most 256 files"),
        (lambda f: (f / "model.onnx").write_bytes(b"other"), "expected sha256"),
    ],
)
def test_a_folder_that_is_no_good_package_is_not_packed(
    tmp_path: Path, spoil: Callable[[Path], Any], said: str
) -> None:
    folder = package_folder(tmp_path / "a")
    spoil(folder)
    with pytest.raises(PackageError, match=said):
        pack(folder, tmp_path / "layout")


@pytest.mark.parametrize("version", ["1", "1.0", "01.0.0", "1.0.0-", "v1.0.0", "1.0.0+a_b"])
def test_a_version_that_is_not_semantic_is_not_packed(tmp_path: Path, version: str) -> None:
    folder = package_folder(tmp_path / "a", version)
    with pytest.raises(PackageError, match=r"\$\.version: expected text that matches"):
        pack(folder, tmp_path / "layout")


def titled(forger: Forger, old: str, new: str) -> None:
    forger.layer(old)["annotations"][oci.TITLE] = new
    forger.manifest["layers"].sort(key=lambda each: each["annotations"][oci.TITLE])


def again(forger: Forger, title: str, new: str) -> None:
    layer = json.loads(json.dumps(forger.layer(title)))
    forger.manifest["layers"].append(layer)
    titled(forger, title, new)


def many(forger: Forger) -> None:
    layer = forger.layer("labels.txt")
    forger.manifest["layers"] += [{**layer, "annotations": {oci.TITLE: f"n{n:04}"}} for n in range(300)]


LIES: list[tuple[Callable[[Forger], Any], str]] = [
    (lambda f: titled(f, "labels.txt", "../labels.txt"), "expected a path inside the package"),
    (lambda f: titled(f, "labels.txt", "sub/../../labels.txt"), "expected a path inside the package"),
    (lambda f: titled(f, "labels.txt", "/etc/labels.txt"), "expected a path inside the package"),
    (lambda f: titled(f, "labels.txt", "a\\..\\b"), "expected a path inside the package"),
    (lambda f: titled(f, "labels.txt", "labels.txt\n"), "expected a path inside the package"),
    (lambda f: titled(f, "labels.txt", "labels.txt\0"), "expected a path inside the package"),
    (lambda f: titled(f, "labels.txt", "labels.txt "), "expected a path inside the package"),
    (lambda f: titled(f, "labels.txt", "ﬁle"), "expected a path inside the package"),
    (lambda f: titled(f, "labels.txt", ""), "expected a path inside the package"),
    (lambda f: titled(f, "labels.txt", "a/b/c/d/e"), "expected a path inside the package"),
    (lambda f: titled(f, "labels.txt", "n" * 300), "expected a path inside the package"),
    (lambda f: again(f, "labels.txt", "labels.txt"), "expected each title once, got 'labels.txt'"),
    (lambda f: again(f, "labels.txt", "LABELS.txt"), "expected each title once, got 'labels.txt'"),
    (lambda f: again(f, "labels.txt", "model.onnx/labels.txt"), "got 'model.onnx' as both"),
    (lambda f: f.manifest["layers"].reverse(), "expected them sorted by title"),
    (lambda f: titled(f, "manifest.json", "manifest2.json"), "expected manifest.json among them"),
    (many, r"\$\.layers: expected at most 256 items, got 303"),
    (lambda f: f.manifest.update(layers=[]), r"\$\.layers: expected at least 1 items"),
    (lambda f: f.layer("labels.txt").update(size=8), "expected 8 bytes of"),
    (lambda f: f.layer("labels.txt").update(size=10), "expected 10 bytes of"),
    (lambda f: f.layer("labels.txt").update(size=-1), r"size: expected a whole number"),
    (lambda f: f.layer("labels.txt").update(size=10**15), "expected at most 2147483648 bytes a file"),
    (
        lambda f: f.layer("labels.txt").update(digest="sha256:" + "0" * 64),
        "expected an image layout, got No such",
    ),
    (
        lambda f: f.layer("labels.txt").update(digest="sha512:" + "0" * 128),
        r"digest: expected text that matches",
    ),
    (
        lambda f: f.layer("labels.txt").update(digest="sha256:" + "0" * 64 + "\n"),
        "expected text that matches",
    ),
    (
        lambda f: f.layer("labels.txt").update(digest="sha256:../../../../etc/passwd"),
        "expected text that matches",
    ),
    (
        lambda f: f.layer("labels.txt").update(mediaType="application/vnd.oci.image.layer.v1.tar+gzip"),
        "mediaType",
    ),
    (lambda f: f.layer("labels.txt").update(urls=["http://example.invalid"]), "urls: unknown key"),
    (
        lambda f: f.manifest["config"].update(mediaType="application/vnd.oci.image.config.v1+json"),
        "mediaType",
    ),
    (lambda f: f.manifest.update(artifactType="application/vnd.other.v1"), "artifactType: expected one of"),
    (
        lambda f: f.manifest.update(mediaType="application/vnd.oci.image.index.v1+json"),
        "mediaType: expected one",
    ),
    (lambda f: f.manifest.update(schemaVersion=1), "schemaVersion: expected one of 2"),
    (lambda f: f.manifest.update(subject={}), "subject: unknown key"),
    (lambda f: f.config.update(name="other"), "name: expected tiny as in the manifest, got other"),
    (lambda f: f.config.update(version="9.0.0"), "version: expected 1.0.0 as in the manifest, got 9.0.0"),
    (lambda f: f.config.update(security_epoch=-1), "security_epoch: expected a whole number"),
    (lambda f: f.config.update(security_epoch=True), "security_epoch: expected a whole number"),
    (lambda f: f.config.update(more=1), "more: unknown key"),
    (lambda f: f.config["manifest"].update(description="x"), "expected what the package's config says"),
    (lambda f: f.config["manifest"]["artifact"].update(sha256="0" * 64), "expected that of the file"),
    (lambda f: f.config["manifest"]["artifact"].update(file="other.onnx"), "expected one of the files"),
    (lambda f: f.config["manifest"].update(labels="../labels.txt"), "labels: expected text that matches"),
]


@pytest.mark.parametrize(("lie", "said"), LIES, ids=range(len(LIES)))
def test_a_layout_that_lies_is_refused_with_the_reason_and_nothing_is_written(
    tmp_path: Path, lie: Callable[[Forger], Any], said: str
) -> None:
    forger = Forger(tmp_path)
    lie(forger)
    forger.name()
    with pytest.raises(PackageError, match=said):
        unpack(forger.there, tmp_path / "out")
    assert {p.name for p in tmp_path.iterdir()} == {"1.0.0", "layout"}


def test_the_forger_alone_is_harmless(tmp_path: Path) -> None:
    forger = Forger(tmp_path)
    forger.name()
    assert verify(forger.there) == forger.packed


@pytest.mark.parametrize(
    ("forge", "said"),
    [
        (lambda raw: raw + b" ", "expected sorted JSON without spaces"),
        (lambda raw: raw.replace(b'"size"', b'"size":1,"size"', 1), "expected sorted JSON"),
        (lambda raw: raw.replace(b"2}", b"2.0}"), r"schemaVersion: Expected `int`, got `float`"),
        (lambda _: b"[" * 100_000, "expected JSON"),
        (lambda _: b"[" * 400_000, "expected a manifest of at most 262144 bytes, got 400000"),
        (lambda _: b'{"schemaVersion":NaN}', "NaN is no number"),
        (lambda _: b"\xff\xfe", "expected JSON"),
        (lambda _: b'"' + b"x" * 1000 + b'"', "expected a mapping"),
        (lambda _: b"9" * 5000, "expected JSON"),
        (lambda _: b"", "expected JSON"),
    ],
)
def test_a_manifest_in_another_form_is_refused(
    tmp_path: Path, forge: Callable[[bytes], bytes], said: str
) -> None:
    forger = Forger(tmp_path)
    forger.name(raw=forge(oci.canonical(forger.manifest)))
    with pytest.raises(PackageError, match=said) as caught:
        verify(forger.there)
    assert len(str(caught.value)) < 3000, "a message is no place for a bomb"


def test_a_config_in_another_form_is_refused(tmp_path: Path) -> None:
    forger = Forger(tmp_path)
    forger.name(config=json.dumps(forger.config).encode())
    with pytest.raises(PackageError, match="config: expected sorted JSON without spaces"):
        verify(forger.there)


def test_more_bytes_than_the_limits_allow_are_refused_before_they_are_read(tmp_path: Path) -> None:
    packed(tmp_path)
    with pytest.raises(PackageError, match=r"expected at most 2000 bytes a file, got 3000 \(model.onnx\)"):
        verify(tmp_path / "layout", limits=Limits(file_bytes=2000))
    with pytest.raises(PackageError, match="expected at most 4000 bytes in all"):
        verify(tmp_path / "layout", limits=Limits(total_bytes=4000))


def moved(path: Path) -> Path:
    """Move something away, for a link to lead to it."""
    away = path.parents[2] / f"away-{path.name[:8]}"
    shutil.move(path, away)
    return away


@pytest.mark.parametrize("what", ["oci-layout", "index.json", "blobs", "blobs/sha256", "blob"])
def test_links_in_a_layout_are_not_followed(tmp_path: Path, what: str) -> None:
    digest = packed(tmp_path / "room" / "deep").listing.digest
    there = tmp_path / "room" / "deep" / "layout"
    path = there / (f"blobs/sha256/{digest}" if what == "blob" else what)
    path.symlink_to(moved(path))
    with pytest.raises(PackageError, match="got a link or something else"):
        verify(there)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_refused_without_waiting_for_it(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    digest = packed(tmp_path).listing.digest
    path = tmp_path / "layout" / "blobs" / "sha256" / digest
    path.unlink()
    make(path)
    with pytest.raises(PackageError, match=r"expected a file, got something else|expected .* bytes"):
        verify(tmp_path / "layout")


def test_a_flipped_byte_in_any_blob_is_refused(tmp_path: Path) -> None:
    packed(tmp_path)
    for path in sorted((tmp_path / "layout" / "blobs" / "sha256").iterdir()):
        content = path.read_bytes()
        for at in {0, len(content) // 2, len(content) - 1}:
            path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
            with pytest.raises(PackageError, match="expected sha256"):
                unpack(tmp_path / "layout", tmp_path / "out")
        path.write_bytes(content)
    verify(tmp_path / "layout")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("oci-layout", b"{}", "expected an image layout"),
        ("oci-layout", b'{"imageLayoutVersion":"2.0.0"}', "expected version 1.0.0, got '2.0.0'"),
        ("oci-layout", b" " * 5000, "expected at most 4096 bytes"),
        ("index.json", b"[]", "expected a mapping"),
        ("index.json", b" " * 2_000_000, "expected at most 1048576 bytes"),
        ("index.json", b'{"schemaVersion":2,"manifests":[]}', "got 0 .*there: none"),
    ],
)
def test_an_index_that_is_none_is_refused(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    packed(tmp_path)
    (tmp_path / "layout" / name).write_bytes(content)
    with pytest.raises(PackageError, match=said):
        verify(tmp_path / "layout")


def test_other_things_in_an_index_are_passed_over(tmp_path: Path) -> None:
    mine = packed(tmp_path)
    path = tmp_path / "layout" / "index.json"
    index = json.loads(path.read_bytes())
    other = {"mediaType": oci.INDEX_TYPE, "digest": "sha256:" + "1" * 64, "size": 1, "platform": {"os": "x"}}
    index["manifests"].insert(0, other)
    index["annotations"] = {"from": "another tool"}
    path.write_text(json.dumps(index, indent=2))
    assert verify(tmp_path / "layout") == mine


def test_documents_outside_the_layout_are_not_read(tmp_path: Path) -> None:
    packed(tmp_path)
    for name in ("../1.0.0/manifest.json", "/etc/hostname", "", "blobs/../../1.0.0/manifest.json"):
        with pytest.raises(PackageError, match="expected a path inside it"):
            Layout(tmp_path / "layout").document(name, 10_000)


def test_a_folder_is_compared_with_all_that_its_manifest_lists(tmp_path: Path) -> None:
    listing = packed(tmp_path).listing
    folder = tmp_path / "1.0.0"
    assert layout.check_folder(folder, listing) == []
    (folder / "labels.txt").write_text("evil\nbad\n")
    assert layout.check_folder(folder, listing) == [], "of the same size"
    (found,) = layout.check_folder(folder, listing, lambda p: oci.sha256(p.read_bytes()))
    assert "labels.txt: expected sha256" in found
    (folder / "labels.txt").unlink()
    (folder / "more").write_text("x")
    found = "\n".join(layout.check_folder(folder, listing))
    assert "expected labels.txt, got no such file" in found
    assert "expected the package's files alone, got more" in found
    assert "got No such file" in layout.check_folder(tmp_path / "nowhere", listing)[0]
