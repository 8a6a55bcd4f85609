"""`skerry model keys`, `sign` and `verify`: keys, a package, a stick, a lost key, a tampered file."""

import json
import shutil
from pathlib import Path

import pytest

import needs
from skerry.cli import main
from skerry.models.signing import keys

PARTS = needs.ROOT / "models" / "parts"
Run = tuple[int, str, str]


WITH = "--keys keys --passphrase-file pass"
MADE = (
    "keys new keys root-1 root-2 root-3 targets snapshot timestamp --passphrase-file pass",
    f"sign init repo {WITH} --days timestamp=14",
    f"sign add repo {PARTS} {WITH} --epoch 2 --class x86 --class jetson",
)


def call(text: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "COST", 2**10)
        return main(["model", *text.split()])


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """A command in an empty folder: its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def captured(text: str) -> Run:
        code = call(text)
        out, err = capsys.readouterr()
        return code, out, err

    return captured


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("pass").write_text("secret\n")
        Path("pass").chmod(0o600)
        assert [call(text) for text in MADE] == [0, 0, 0]
        shutil.copy("repo/metadata/1.root.json", "root.json")
    return folder


@pytest.fixture
def repository(run, made: Path, tmp_path: Path):
    """The same in a folder that has keys, the root of devices, and a repository with a package."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return run


def test_a_signed_package_is_what_a_device_of_its_class_takes(repository) -> None:
    code, out, err = repository("verify repo --root root.json --name parts --class jetson --json")
    assert code == 0, err
    (listed,) = json.loads(out.splitlines()[-1])["packages"]
    assert (listed["name"], listed["security_epoch"], listed["classes"]) == ("parts", 2, ["x86", "jetson"])
    assert listed["taken"]
    assert listed["problem"] == ""
    code, _, err = repository("verify repo --root root.json --name parts --class hailo")
    assert code == 65
    assert "expected a package for this device (hailo), got jetson, x86 (wrong software" in err


def test_a_copy_on_a_stick_is_worth_the_same_and_a_changed_file_on_it_is_found(repository) -> None:
    shutil.copytree("repo", "stick")
    assert repository("verify stick --root root.json --no-clock")[0] == 0
    blob = max(Path("stick/blobs/sha256").iterdir(), key=lambda p: p.stat().st_size)
    content = bytearray(blob.read_bytes())
    content[1000] ^= 1
    blob.write_bytes(content)
    code, out, err = repository("verify stick --root root.json")
    assert code == 65
    assert "expected sha256" in out + err
    blob.write_bytes(bytes(content[:-1]))
    assert repository("verify stick --root root.json")[0] == 65


def test_a_package_goes_from_one_layout_to_another_and_keeps_its_digest(repository) -> None:
    assert repository("keys new other/keys root-1 targets snapshot timestamp")[0] == 0
    assert repository("sign init other/repo --keys other/keys")[0] == 0
    code, _, err = repository("sign add other/repo repo --keys other/keys --epoch 3")
    assert (code, "expected 2 as in the package" in err) == (78, True)
    code, out, err = repository("sign add other/repo repo --keys other/keys")
    assert code == 0, err
    digest = json.loads(Path("repo/index.json").read_bytes())["manifests"][0]["digest"]
    assert digest in out
    code, out, _ = repository("verify other/repo --root other/repo/metadata/1.root.json --json")
    assert (code, json.loads(out)["packages"][0]["digest"]) == (0, digest)
    assert repository(f"sign remove other/repo {digest[7:20]} --keys other/keys")[0] == 0
    code, out, _ = repository("verify other/repo --root other/repo/metadata/1.root.json --json")
    assert (code, json.loads(out)["packages"]) == (0, [])


def test_a_lost_key_is_exchanged_by_two_of_three_holders_apart(repository) -> None:
    for holder in (1, 2):
        Path(f"holder-{holder}").mkdir()
        for suffix in ("key", "pub"):
            shutil.move(f"keys/root-{holder}.{suffix}", f"holder-{holder}")
    Path("keys/root-3.key").unlink()  # lost
    code, out, _ = repository("keys show keys")
    lost = next(line.split()[1] for line in out.splitlines() if line.startswith("root-3"))
    assert "(public half only)" in out
    assert repository("keys new holder-3 root-4 --passphrase-file pass")[0] == 0
    code, out, _ = repository(
        f"sign root repo --out draft.json --add root=holder-3/root-4.pub --drop root={lost[:12]}"
    )
    assert code == 0
    assert f"root: loses key {lost}" in out
    code, _, err = repository(f"sign publish repo draft.json {WITH}")
    assert (code, "expected signatures of 2 root keys of root 1, got 0" in err) == (78, True)
    for holder in (1, 2):
        code, out, _ = repository(
            f"sign approve repo draft.json --keys holder-{holder} --passphrase-file pass"
        )
        assert (code, f"{holder} of 2 keys of the root before" in out) == (0, True)
    assert repository(f"sign publish repo draft.json {WITH}")[0] == 0
    code, out, _ = repository("verify repo --root root.json --json")
    assert (code, json.loads(out)["root"]) == (0, 2)
    code, out, _ = repository(f"sign renew repo {WITH}")
    assert (code, "timestamp 4" in out) == (0, True)


@pytest.mark.parametrize(
    ("text", "code", "why"),
    [
        ("keys new keys admin-1", 78, "expected a name that begins with root, targets"),
        ("keys new keys root-1", 78, "expected a new key"),
        ("keys show nowhere", 69, "nowhere"),
        ("sign renew nowhere --keys keys --passphrase-file pass", 78, "expected a repository, got none"),
        ("sign renew repo --keys keys", 78, "--passphrase-file"),
        ("sign add repo nowhere --keys keys --passphrase-file pass", 65, "nowhere"),
        ("verify repo --root nowhere", 69, "nowhere"),
        ("verify repo --root pass", 65, "expected root metadata"),
        ("verify nowhere --root root.json", 69, "timestamp.json"),
    ],
)  # fmt: skip
def test_a_command_says_what_is_wrong_and_whose_fault_it_is(
    repository, text: str, code: int, why: str
) -> None:
    seen, _, err = repository(text)
    assert (seen, why in err) == (code, True), err


@pytest.mark.parametrize(
    "text", ["sign init repo --keys keys --days timestamp=0", "sign root repo --out x --add y=z"]
)
def test_an_option_that_makes_no_sense_is_refused(run, text: str) -> None:
    with pytest.raises(SystemExit):
        run(text)


def test_a_folder_without_a_key_of_each_role_makes_no_repository(run) -> None:
    assert run("keys new keys root-1 timestamp")[0] == 0
    code, _, err = run("sign init repo --keys keys")
    assert (code, "got none of targets, snapshot" in err) == (78, True)
