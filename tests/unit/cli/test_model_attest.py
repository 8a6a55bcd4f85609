"""Attestations signed with their packages, and what a device that asks for them makes of it."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

import needs
from attested import attestation, figures
from skerry.cli import main
from skerry.models import layout
from skerry.models.benching.statement import Statement, encode
from skerry.models.signing import keys

PARTS = needs.ROOT / "models" / "parts"
WITH = "--keys keys --passphrase-file pass"
MADE = (
    "keys new keys root targets snapshot timestamp --passphrase-file pass",
    f"sign init repo {WITH}",
    f"pack {PARTS} --out layout",
)
SLOW = {"figures": figures(memory_mib=900)}


def call(text: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "COST", 2**10)
        return main(["model", *text.split()])


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
def run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """A command in a folder that has keys, an empty repository and a layout: exit code, output, errors."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)

    def captured(text: str) -> tuple[int, str, str]:
        code = call(text)
        return (code, *capsys.readouterr())

    return captured


@pytest.fixture
def digest(run) -> str:
    return f"sha256:{layout.select(Path('layout')).hexadecimal}"


def put(name: str, made: Statement) -> bytes:
    raw = encode(made)
    Path(name).write_bytes(raw)
    return raw


def test_an_attestation_is_signed_with_its_package_and_lets_it_onto_a_device_that_asks(run, digest) -> None:
    raw = put("a.json", attestation(digest))
    code, out, err = run(f"sign add repo layout {WITH} --attestation a.json")
    assert code == 0, err
    assert "amd64-gateway: budget met, frame to event within 19.7 ms (p95), 130 MiB" in out
    assert (Path("repo/blobs/sha256") / hashlib.sha256(raw).hexdigest()).read_bytes() == raw
    asked = "verify repo --root root.json --name parts --require-attestation --json --class"
    code, out, err = run(f"{asked} amd64-gateway")
    assert code == 0, err
    (listed,) = json.loads(out)["packages"]
    assert listed["taken"]
    assert listed["attestations"][0]["statement"] == f"sha256:{hashlib.sha256(raw).hexdigest()}"
    code, _, err = run(f"{asked} jetson-8gb")
    assert code == 65
    assert "expected an attestation for class jetson-8gb, got amd64-gateway" in err


def test_a_package_that_is_listed_is_attested_later_class_by_class(run, digest) -> None:
    assert run(f"sign add repo layout {WITH}")[0] == 0
    put("gateway.json", attestation(digest))
    put(
        "jetson.json",
        attestation(digest, "jetson-8gb", figures=figures(frames_per_s=70.0, offered_frames_per_s=60.0)),
    )
    assert run(f"sign attest repo gateway.json {WITH}")[0] == 0
    code, out, err = run(f"sign attest repo jetson.json {WITH} --json")
    assert code == 0, err
    (package,) = json.loads(out)["packages"]
    assert [each["device_class"] for each in package["attestations"]] == ["amd64-gateway", "jetson-8gb"]


@pytest.mark.parametrize(
    ("said", "forced", "reason"),
    [
        (SLOW, True, "verdict: expected the budget of amd64-gateway to be met, got memory_mib 900 where 512"),
        ({"seconds": 30.0}, True, "seconds: expected 600 or more, got 30 (--force"),
        ({"digest": f"sha256:{9:064x}"}, False, "subject: expected sha256:"),
        (
            {"device_class": "jetson-8gb", "figures": figures(frames_per_s=70.0, offered_frames_per_s=60.0)},
            False,
            "device_class: expec",
        ),
    ],
)
def test_what_proves_nothing_about_this_package_is_refused_and_what_is_bad_is_only_signed_by_force(
    run, digest, said: dict, forced: bool, reason: str
) -> None:
    put("a.json", attestation(**{"digest": digest} | said))
    command = f"sign add repo layout {WITH} --class amd64-gateway --attestation a.json"
    code, _, err = run(command)
    assert (code, reason in err) == (65, True)
    code, _, err = run(f"{command} --force")
    assert code == (0 if forced else 65), err


def test_a_package_that_was_signed_though_it_missed_the_budget_is_refused_by_devices_that_ask(
    run, digest
) -> None:
    put("a.json", attestation(digest, **SLOW))
    assert run(f"sign add repo layout {WITH} --attestation a.json --force")[0] == 0
    asked = "verify repo --root root.json --name parts --class amd64-gateway"
    assert run(asked)[0] == 0
    code, _, err = run(f"{asked} --require-attestation")
    assert (code, "expected the budget of class amd64-gateway to be met, got missed" in err) == (65, True)


def test_attestations_of_a_package_that_is_not_listed_are_refused(run, digest) -> None:
    put("a.json", attestation(digest))
    code, _, err = run(f"sign attest repo a.json {WITH}")
    assert (code, "not listed here" in err) == (65, True)
    code, _, err = run(f"sign attest repo none.json {WITH}")
    assert (code, "none.json: No such file" in err) == (69, True)
    Path("b.json").write_text("{}")
    code, _, err = run(f"sign attest repo b.json {WITH}")
    assert (code, "b.json: $.subject: " in err) == (65, True), err


def test_two_attestations_of_one_class_are_not_taken_at_once(run, digest) -> None:
    put("a.json", attestation(digest))
    put("b.json", attestation(digest))
    code, _, err = run(f"sign add repo layout {WITH} --attestation a.json --attestation b.json")
    assert (code, "expected one attestation for amd64-gateway, got two" in err) == (78, True)
