"""`skerry model pack`, `unpack` and `inspect` of a layout, as a person calls them."""

import json
from pathlib import Path

import pytest

from model_folders import package_folder, packed
from skerry.cli import main


def test_pack_inspect_and_unpack_go_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, there = package_folder(tmp_path / "tiny"), tmp_path / "layout"
    assert main(["model", "pack", str(folder), "--out", str(there), "--security-epoch", "3", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["title"], report["security_epoch"]) == ("tiny@1.0.0", 3)
    digest = report["digest"]
    assert main(["model", "inspect", str(there), "--json"]) == 0
    (inspected,) = json.loads(capsys.readouterr().out)["packages"]
    assert inspected == {k: v for k, v in report.items() if k != "layout"}
    assert main(["model", "unpack", str(there), "--out", str(tmp_path / "out"), "--digest", digest[:20]]) == 0
    assert capsys.readouterr().out == f"tiny@1.0.0 -> {tmp_path / 'out'}\n"
    for path in folder.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_inspect_lists_every_package_and_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = packed(tmp_path, "1.0.0"), packed(tmp_path, "2.0.0")
    assert main(["model", "inspect", str(tmp_path / "layout")]) == 0
    shown = capsys.readouterr().out
    assert "2 packages, every hash compared" in shown
    assert one.listing.digest in shown
    assert two.listing.digest in shown
    assert "3000 B" in shown


def test_a_layout_with_a_changed_byte_ends_with_65_and_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listing = packed(tmp_path).listing
    path = tmp_path / "layout" / "blobs" / "sha256" / listing.files[-1].blob.digest
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert main(["model", "inspect", str(tmp_path / "layout")]) == 65
    assert "model.onnx: expected sha256" in capsys.readouterr().err
    assert main(["model", "unpack", str(tmp_path / "layout"), "--out", str(tmp_path / "out")]) == 65
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_written_ends_with_69_and_says_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = package_folder(tmp_path / "tiny")
    (tmp_path / "file").write_text("x")
    assert main(["model", "pack", str(folder), "--out", str(tmp_path / "file" / "layout")]) == 69
    assert str(tmp_path / "file") in capsys.readouterr().err
