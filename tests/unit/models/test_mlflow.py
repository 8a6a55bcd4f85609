"""MLflow's file store: its client reads what we write, and what it or anybody wrote is distrusted."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from model_folders import NAME, package_folder, packed
from skerry.cli import main
from skerry.errors import ConfigError, PackageError, Unavailable
from skerry.models import layout
from skerry.models.mlflow import export, find, take
from skerry.models.package import load

CLIENT = os.environ.get("SKERRY_MLFLOW_PYTHON", "")
real = pytest.mark.skipif(
    not CLIENT, reason="needs an interpreter with mlflow-skinny in SKERRY_MLFLOW_PYTHON (docs/registries.md)"
)
NOW = 1_795_271_765_565


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def by_hand(store: Path, package: Path, mlmodel: Any, location: str | None = None, **meta: Any) -> Path:
    """A registered model as MLflow lays it out: its files are a run's."""
    model = store / "1" / "run" / "artifacts" / "model"
    shutil.copytree(package, model / "package")
    (model / "MLmodel").write_text(mlmodel if isinstance(mlmodel, str) else yaml.safe_dump(mlmodel))
    version = store / "models" / "theirs" / "version-3"
    version.mkdir(parents=True)
    where = location or model.as_uri()
    said = {"name": "theirs", "version": 3, "source": where, "storage_location": where, **meta}
    (version / "meta.yaml").write_text(yaml.safe_dump(said))
    return model


OURS = {"flavors": {"skerry": {"data": "package"}, "onnx": {"data": "package/model.onnx"}}}


# Out and in again


def test_a_package_comes_back_as_it_was(tmp_path: Path) -> None:
    folder = package_folder(tmp_path / "a")
    done = export(folder, tmp_path / "mlruns", now_ms=NOW)
    assert (done.name, done.number, done.title, done.new) == (NAME, 1, "tiny@1.0.0", True)
    back = take(find(tmp_path / "mlruns", NAME), tmp_path / "back")
    assert files(back.folder) == files(folder)


def test_the_next_package_is_the_next_version(tmp_path: Path) -> None:
    for n, version in enumerate(("1.0.0", "1.1.0"), 1):
        folder = package_folder(tmp_path / version, version)
        assert export(folder, tmp_path / "mlruns", now_ms=NOW).number == n
    assert find(tmp_path / "mlruns", NAME).number == 2
    old = find(tmp_path / "mlruns", NAME, "1")
    assert take(old, tmp_path / "back").title == "tiny@1.0.0"


def test_a_package_that_is_registered_is_not_registered_again(tmp_path: Path) -> None:
    packed(tmp_path)
    first = export(tmp_path / "1.0.0", tmp_path / "mlruns", now_ms=NOW)
    before = files(tmp_path / "mlruns")
    again = export(tmp_path / "layout", tmp_path / "mlruns", now_ms=NOW + 1)
    assert (again.number, again.digest, again.new) == (1, first.digest, False)
    assert files(tmp_path / "mlruns") == before


def test_another_content_of_a_version_is_refused(tmp_path: Path) -> None:
    export(package_folder(tmp_path / "a"), tmp_path / "mlruns", now_ms=NOW)
    before = files(tmp_path / "mlruns")
    with pytest.raises(ConfigError, match=r"expected another version than 1\.0\.0"):
        export(package_folder(tmp_path / "b", size=10), tmp_path / "mlruns", now_ms=NOW)
    assert files(tmp_path / "mlruns") == before


def test_the_epoch_of_a_packed_package_is_told(tmp_path: Path) -> None:
    layout.pack(package_folder(tmp_path / "a"), tmp_path / "layout", security_epoch=3)
    done = export(tmp_path / "layout", tmp_path / "mlruns", now_ms=NOW)
    assert yaml.safe_load((done.folder / "MLmodel").read_text())["flavors"]["skerry"]["security_epoch"] == 3


def test_what_mlflow_keeps_of_a_model_stays(tmp_path: Path) -> None:
    meta = tmp_path / "mlruns" / "models" / NAME / "meta.yaml"
    meta.parent.mkdir(parents=True)
    meta.write_text(yaml.safe_dump({"name": NAME, "aliases": {"champion": "1"}, "description": "theirs"}))
    export(package_folder(tmp_path / "a"), tmp_path / "mlruns", now_ms=NOW)
    kept = yaml.safe_load(meta.read_text())
    assert kept == {
        "name": NAME, "aliases": {"champion": "1"}, "description": "theirs", "last_updated_timestamp": NOW,
    }  # fmt: skip


def test_a_damaged_package_is_not_exported(tmp_path: Path) -> None:
    folder = package_folder(tmp_path / "a")
    (folder / "model.onnx").write_bytes(b"other")
    with pytest.raises(PackageError, match="expected sha256"):
        export(folder, tmp_path / "mlruns", now_ms=NOW)
    assert not (tmp_path / "mlruns").exists()


# What others wrote


def test_a_version_of_a_run_is_found_by_its_location(tmp_path: Path) -> None:
    folder = package_folder(tmp_path / "a")
    by_hand(tmp_path / "mlruns", folder, OURS)
    found = find(tmp_path / "mlruns", "theirs")
    assert found.number == 3
    assert files(take(found, tmp_path / "back").folder) == files(folder)


def test_a_store_that_was_moved_is_read_where_it_is(tmp_path: Path) -> None:
    by_hand(tmp_path / "mlruns", package_folder(tmp_path / "a"), OURS)
    (tmp_path / "mlruns").rename(tmp_path / "elsewhere")
    assert find(tmp_path / "elsewhere", "theirs").folder == tmp_path / "elsewhere/1/run/artifacts/model"


def test_a_model_without_our_flavour_is_an_onnx_file(tmp_path: Path) -> None:
    model = by_hand(
        tmp_path / "mlruns",
        package_folder(tmp_path / "a"),
        {"flavors": {"onnx": {"data": "package/model.onnx"}}},
    )
    found = find(tmp_path / "mlruns", "theirs")
    assert (found.package, found.onnx) == (None, model / "package" / "model.onnx")


def test_an_alias_names_a_version(tmp_path: Path) -> None:
    by_hand(tmp_path / "mlruns", package_folder(tmp_path / "a"), OURS)
    aliases = tmp_path / "mlruns" / "models" / "theirs" / "aliases"
    aliases.mkdir()
    (aliases / "champion").write_text("3")
    assert find(tmp_path / "mlruns", "theirs", "champion").number == 3
    for wrong in ("challenger", "../version-3/meta.yaml", ".x"):
        with pytest.raises(ConfigError, match="expected a version's number or an alias"):
            find(tmp_path / "mlruns", "theirs", wrong)


@pytest.mark.parametrize(
    ("mlmodel", "said"),
    [
        ({"flavors": {"skerry": {"data": "../../x"}}}, "expected data inside it"),
        ({"flavors": {"skerry": {"data": "/etc"}}}, "expected data inside it"),
        ({"flavors": {"skerry": {"data": 5}}}, "expected data inside it"),
        ({"flavors": {"onnx": {"data": "none.onnx"}}}, "got nothing there"),
        ({"flavors": {"sklearn": {"pickled_model": "model.pkl"}}}, "flavor skerry or onnx, got sklearn"),
        ({"flavors": []}, "expected flavors, got none"),
        ("[1]", "expected a file of MLflow"),
        ("a: &a [1]\nflavors: *a\n", "expected YAML"),
        ("!!python/object/apply:os.system [true]", "expected YAML"),
        ("{", "expected YAML"),
    ],
)  # fmt: skip
def test_a_model_that_is_none_is_refused(tmp_path: Path, mlmodel: Any, said: str) -> None:
    by_hand(tmp_path / "mlruns", package_folder(tmp_path / "a"), mlmodel)
    with pytest.raises(PackageError, match=said):
        find(tmp_path / "mlruns", "theirs")


def test_a_link_out_of_a_model_is_refused(tmp_path: Path) -> None:
    folder = package_folder(tmp_path / "a")
    model = by_hand(tmp_path / "mlruns", folder, OURS)
    shutil.rmtree(model / "package")
    (model / "package").symlink_to(folder)
    with pytest.raises(PackageError, match="got a link out of it"):
        find(tmp_path / "mlruns", "theirs")
    (model / "package").unlink()
    shutil.copytree(folder, model / "package")
    (model / "package" / "notes.txt").symlink_to("/etc/hostname")
    with pytest.raises(PackageError, match="expected a file, got a link"):
        take(find(tmp_path / "mlruns", "theirs"), tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_damaged_model_is_refused(tmp_path: Path) -> None:
    model = by_hand(tmp_path / "mlruns", package_folder(tmp_path / "a"), OURS)
    (model / "package" / "model.onnx").write_bytes(b"other")
    with pytest.raises(PackageError, match="expected sha256"):
        take(find(tmp_path / "mlruns", "theirs"), tmp_path / "back")


@pytest.mark.parametrize("location", ["s3://bucket/model", "models:/m-1234", "file:///nonexistent/model"])
def test_files_that_are_elsewhere_are_said_so(tmp_path: Path, location: str) -> None:
    by_hand(tmp_path / "mlruns", package_folder(tmp_path / "a"), OURS, location)
    with pytest.raises(Unavailable, match="expected files of the model in a folder"):
        find(tmp_path / "mlruns", "theirs")


def test_a_model_or_version_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    by_hand(tmp_path / "mlruns", package_folder(tmp_path / "a"), OURS)
    with pytest.raises(ConfigError, match=r"expected a registered model other .*there: theirs"):
        find(tmp_path / "mlruns", "other")
    with pytest.raises(ConfigError, match="expected version 2, got 3"):
        find(tmp_path / "mlruns", "theirs", "2")
    with pytest.raises(ConfigError, match="expected the name of a registered model"):
        find(tmp_path / "mlruns", "../theirs")


# Commands


def test_the_commands_export_and_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed(tmp_path)
    store = str(tmp_path / "mlruns")
    assert main(["model", "export", str(tmp_path / "layout"), "--mlflow", store]) == 0
    assert "tiny@1.0.0" in capsys.readouterr().out
    take_it = ["model", "import", "--mlflow", store, "--model", NAME, "--out", str(tmp_path / "back")]
    assert main([*take_it, "--version", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "tiny@1.0.0"
    assert load(tmp_path / "back").title == "tiny@1.0.0"
    assert main(take_it) == 78, "taken"
    assert main([*take_it, "--force"]) == 0
    assert main(["model", "import", "--mlflow", store, "--out", str(tmp_path / "x")]) == 78
    assert main(["model", "import", "--out", str(tmp_path / "x")]) == 78
    assert main(["model", "import", "a.onnx", "--model", NAME, "--out", str(tmp_path / "x")]) == 78


# The real client


def client(*arguments: str, home: Path) -> str:
    done = subprocess.run(
        [CLIENT, str(Path(__file__).parents[2] / "mlflow_client.py"), *arguments],
        capture_output=True, text=True, timeout=100, check=False,
        env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1] if done.stdout else ""


@real
def test_mlflow_reads_what_we_write_and_we_what_it_changes(tmp_path: Path) -> None:
    store = tmp_path / "mlruns"
    for version in ("1.0.0", "1.1.0"):
        done = export(package_folder(tmp_path / version, version), store, now_ms=NOW)
    said = json.loads(client("read", str(store), NAME, home=tmp_path))
    assert (said["names"], said["versions"], said["status"]) == ([NAME], [1, 2], ["READY", "READY"])
    assert said["tags"] == {
        "skerry.version": "1.1.0", "skerry.digest": done.digest, "skerry.security_epoch": "0",
    }  # fmt: skip
    assert said["flavors"]["skerry"]["digest"] == done.digest
    assert "package/model.onnx" in said["files"]
    assert find(store, NAME, "blessed").number == 1
    assert export(package_folder(tmp_path / "c", "1.2.0"), store, now_ms=NOW).number == 3


@real
def test_we_read_what_mlflow_writes(tmp_path: Path) -> None:
    files_of = tmp_path / "files"
    folder = package_folder(files_of / "package")
    client("write", str(tmp_path / "mlruns"), str(files_of), home=tmp_path)
    found = find(tmp_path / "mlruns", "theirs", "champion")
    assert found.number == 1
    assert files(take(found, tmp_path / "back").folder) == files(folder)
    plain = find(tmp_path / "mlruns", "theirs")
    assert (plain.number, plain.package) == (2, None)
    assert plain.onnx is not None
