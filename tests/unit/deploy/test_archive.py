"""Archives of files: the same for the same, and with the containers' owner."""

import io
import tarfile
from pathlib import Path

from skerry.deploy.archive import Entry, content_name, entries, write


def folder(path: Path, **files: str) -> Path:
    for name, text in files.items():
        file = path / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return path


def unpacked(files: list[Entry]) -> dict[str, tarfile.TarInfo]:
    out = io.BytesIO()
    write(files, out)
    out.seek(0)
    with tarfile.open(fileobj=out) as archive:
        return {info.name: info for info in archive.getmembers()}


def test_everything_in_a_folder_is_there_and_owned_by_the_containers_user(tmp_path):
    found = unpacked(list(entries("parts", folder(tmp_path, a="1", below__b="22"))))
    assert sorted(found) == ["parts", "parts/a", "parts/below", "parts/below/b"]
    assert {(i.uid, i.gid) for i in found.values()} == {(10001, 10001)}
    assert found["parts"].mode == found["parts/below"].mode == 0o755
    assert found["parts/a"].mode == 0o644
    assert found["parts/below/b"].size == 2


def test_a_private_file_is_its_owners_alone(tmp_path):
    found = unpacked(list(entries("key", folder(tmp_path, key="k") / "key", private=True)))
    assert found["key"].mode == 0o600


def test_a_link_counts_as_what_it_leads_to(tmp_path):
    folder(tmp_path, far__model="weights")
    near = tmp_path / "near"
    near.mkdir()
    (near / "model").symlink_to(tmp_path / "far" / "model")
    assert unpacked(list(entries("near", near)))["near/model"].isreg()


def test_the_same_files_have_the_same_name_wherever_they_are(tmp_path):
    one, other = folder(tmp_path / "1", a="1", b="2"), folder(tmp_path / "2", b="2", a="1")
    assert content_name(entries("x", one), "site") == content_name(entries("x", other), "site")


def test_another_content_name_mode_or_file_gives_another_name(tmp_path):
    def name(private: bool = False, **files: str) -> str:
        place = tmp_path / str(len(list(tmp_path.iterdir())))
        return content_name(entries("x", folder(place, **files), private=private), "site")

    names = [name(a="1"), name(a="2"), name(b="1"), name(a="1", b=""), name(private=True, a="1")]
    assert len(set(names)) == len(names)


def test_a_secrets_name_differs_from_site_to_site():
    secret = [Entry(name="password", content=b"1234", private=True)]
    assert content_name(secret, "one") != content_name(secret, "two")
    assert content_name(secret, "one") == content_name(secret, "one")
