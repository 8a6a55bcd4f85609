"""`skerry model readiness` of a folder, a layout and a signed repository."""

import json
from pathlib import Path

import pytest

import needs
from attested import GATEWAY, attestation
from model_folders import package_folder
from skerry.cli import main
from skerry.models import layout
from skerry.models.benching.statement import encode
from skerry.models.signing import keys

PARTS = needs.ROOT / "models" / "parts"
WITH = "--keys keys"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(keys, "COST", 2**10)

    def captured(text: str) -> tuple[int, str, str]:
        code = main(["model", *text.split()])
        return (code, *capsys.readouterr())

    return captured


@pytest.fixture
def repository(run) -> str:
    """A repository with the demo's package, attested for one class; returns its digest."""
    digest = f"sha256:{layout.pack(PARTS, Path('layout')).listing.digest}"
    Path("a.json").write_bytes(encode(attestation(digest)))
    assert run("keys new keys root targets snapshot timestamp")[0] == 0
    assert run(f"sign init repo {WITH}")[0] == 0
    code, _, err = run(f"sign add repo layout {WITH} --attestation a.json")
    assert code == 0, err
    return digest


def checks(out: str) -> dict[str, str]:
    (package,) = json.loads(out)["packages"]
    return {check["name"]: f"{check['state']}: {check['found']}" for check in package["checks"]}


def test_a_repository_is_judged_as_a_device_does_that_has_its_root(run, repository) -> None:
    code, out, err = run("readiness repo --json")
    assert code == 0, err
    found = checks(out)
    assert found["signed"].startswith("yes: 1 of 1 keys, as the root wants it; good until 20")
    assert found["attestations"] == "yes: amd64-gateway: met"
    rows = {(p["device_class"], p["runtime"]): p for p in json.loads(out)["matrix"]}
    assert (rows[GATEWAY, "onnxruntime"]["attested"], rows[GATEWAY, "onnxruntime"]["budget"]) == (
        "yes",
        "met",
    )
    code, out, _ = run("readiness repo --json --class jetson-8gb")
    assert checks(out)["attestations"] == "no: jetson-8gb: none"
    assert run("keys new others root targets snapshot timestamp")[0] == 0
    assert run("sign init other --keys others")[0] == 0
    code, out, _ = run("readiness repo --root other/metadata/1.root.json --json")
    assert (code, checks(out)["signed"].startswith("no: refused: ")) == (0, True)
    assert checks(out)["attestations"].startswith("no")


def test_a_statement_that_was_changed_in_the_repository_is_not_there(run, repository) -> None:
    code, out, _ = run("verify repo --root repo/metadata/1.root.json --json")
    assert code == 0
    name = json.loads(out)["packages"][0]["attestations"][0]["statement"].removeprefix("sha256:")
    blob = Path("repo/blobs/sha256") / name
    blob.write_bytes(blob.read_bytes().replace(b'"Linux 6"', b'"Linux 7"'))
    assert checks(run("readiness repo --json")[1])["attestations"] == (
        "no: amd64-gateway: met, its statement is not there"
    )


def test_a_package_that_is_in_the_repository_but_not_listed_is_not_signed(run, repository) -> None:
    layout.pack(package_folder(Path("tiny"), "1.0.0"), Path("repo"))
    code, out, err = run("readiness repo --json")
    assert code == 0, err
    listed = {p["title"]: p["checks"][0] for p in json.loads(out)["packages"]}
    assert listed["parts@1.0.0"]["state"] == "yes"
    assert listed["tiny@1.0.0"]["found"] == "in the repository, but not listed by those who sign"


def test_a_folder_is_told_what_it_lacks_and_refused_where_that_is_required(run) -> None:
    code, out, err = run(f"readiness {PARTS} --out page.md --require")
    assert code == 65
    assert out.startswith("parts@1.0.0: not ready: signed, golden pictures, ")
    assert "parts@1.0.0: provenance: no provenance.json" in err
    page = Path("page.md").read_text()
    assert page.startswith("# Release readiness")
    assert "| signed | no |" in page
    assert "| parts@1.0.0 | jetson-8gb | onnxruntime | cpu, cuda, tensorrt | reference | no | - |" in page


def test_what_is_no_package_or_no_class_is_said(run, tmp_path: Path) -> None:
    code, _, err = run("readiness none")
    assert (code, "expected a model package" in err) == (65, True)
    code, _, err = run(f"readiness {PARTS} --class toaster")
    assert (code, "--class: expected one of" in err) == (78, True)
    layout.pack(PARTS, Path("layout"))
    blob = max(Path("layout/blobs/sha256").iterdir(), key=lambda p: p.stat().st_size)
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    code, _, err = run("readiness layout")
    assert (code, "expected sha256" in err) == (65, True)
