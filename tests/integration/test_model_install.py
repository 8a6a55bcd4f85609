"""`skerry model install`: a stick, a device without a network, and the command."""

import json
import shutil
import time
from pathlib import Path

import pytest

from model_folders import NAME, package_folder
from publisher import Publisher
from skerry.audit import verify
from skerry.cli import main
from skerry.models import layout
from skerry.trust.packages import TrustedPackage
from skerry.updater.settings import StoreSettings
from skerry.updater.store import Store

SITE = f"""
site: yard
cameras: [{{name: gate, source: {{kind: synthetic, scene: belt, seed: 1, fps: 10, width: 320, height: 240}}}}]
models: [{{package: bundled, slot: gate}}]
updater: {{root: root.json, slots: {{gate: {{model: {NAME}}}}}}}
"""


@pytest.fixture
def stick(tmp_path: Path) -> Path:
    publisher = Publisher(tmp_path / "repository", now=time.time())
    packed = layout.pack(package_folder(tmp_path / "new", "1.1.0"), publisher.folder)
    publisher.add(
        TrustedPackage(
            digest=f"sha256:{packed.listing.digest}", name=NAME, version="1.1.0", length=packed.listing.size
        )
    )
    package_folder(tmp_path / "bundled", "1.0.0")
    (tmp_path / "root.json").write_bytes(publisher.anchor)
    (tmp_path / "site.yaml").write_text(SITE, encoding="utf-8")
    return publisher.folder


def install(room: Path, stick: Path, *more: str) -> int:
    return main(["model", "install", str(stick), str(room / "site.yaml"), "--out", str(room / "out"), *more])


def test_a_stick_puts_its_package_on_trial_and_says_so(tmp_path: Path, stick: Path, capsys) -> None:
    assert install(tmp_path, stick, "--json") == 0
    told = json.loads(capsys.readouterr().out)["slots"]["gate"]
    with Store.open(tmp_path / "out" / "state" / "models", StoreSettings()) as store:
        slots = store.slots("gate")
    assert (slots.current, slots.trial) == (None, told["digest"])
    assert (told["model"], told["state"]) == (f"{NAME}@1.1.0", "on trial")
    assert verify(tmp_path / "out" / "state" / "updater" / "audit").problems == ()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda stick: shutil.rmtree(stick / "metadata"), "expected a repository"),
        (lambda stick: (stick / "metadata" / "timestamp.json").unlink(), "expected it beside the others"),
        (lambda stick: (stick / "metadata" / "timestamp.json").write_text("{}"), "not the metadata"),
        (lambda stick: shutil.rmtree(stick / "blobs"), "expected"),
    ],
)
def test_a_stick_that_is_no_good_changes_nothing(tmp_path: Path, stick: Path, spoil, said, capsys) -> None:
    spoil(stick)
    assert install(tmp_path, stick) in (65, 69)
    assert said in capsys.readouterr().err
    store = tmp_path / "out" / "state" / "models"
    if store.exists():
        with Store.open(store, StoreSettings()) as opened:
            assert opened.models() == ()


def test_a_store_that_an_updater_has_open_is_left_to_it(tmp_path: Path, stick: Path, capsys) -> None:
    with Store.open(tmp_path / "out" / "state" / "models", StoreSettings()):
        assert install(tmp_path, stick) == 69
    assert "as a source of kind folder" in capsys.readouterr().err


def test_a_slot_that_is_not_there_is_told_with_those_that_are(tmp_path: Path, stick: Path, capsys) -> None:
    assert install(tmp_path, stick, "--slot", "gat") == 78
    assert "expected one of the slots gate, got gat" in capsys.readouterr().err
