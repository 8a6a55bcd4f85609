"""`skerry model bench`: real processes, a budget that is missed, and an attestation that says so."""

import json
from pathlib import Path

import pytest
import yaml

import needs
from skerry.cli import main
from skerry.deploy.devices import DEVICES
from skerry.models import layout
from skerry.models.benching import machine, statement

PARTS = needs.ROOT / "models" / "parts"


@pytest.fixture
def strict(tmp_path: Path) -> Path:
    """A class of this machine's architecture that nothing is fast enough for, with one core."""
    raw = yaml.safe_load((needs.ROOT / "device-classes" / "arm64-4gb.yaml").read_text())
    raw |= {"architecture": machine.architecture(), "cores": 1}
    raw["budget"]["p95_ms"] = 0.001
    path = tmp_path / "strict.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_package_is_measured_from_frame_to_event_judged_and_attested(
    tmp_path: Path, strict: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = layout.pack(PARTS, tmp_path / "layout").listing.digest
    code = main(
        [
            "model", "bench", str(tmp_path / "layout"), "--class", str(strict), "--scenario", "single-stream",
            "--seconds", "1", "--runtime", "onnxruntime", "--require", "--json",
            "--out", str(tmp_path / "a.json"),
        ]
    )  # fmt: skip
    out, err = capsys.readouterr()
    assert code == 65, err
    assert "parts@1.0.0: class strict: frame to event, p95: expected <= 0.001 ms, got " in err
    said = json.loads(out.splitlines()[-1])
    figures = said["figures"]
    assert said["digest"] == f"sha256:{digest}"
    assert figures["frame_to_event_ms"]["samples"] > 0
    assert figures["frame_to_event_ms"]["p50"]["value"] > figures["session_ms"]["p50"]["value"] > 0
    assert figures["unanswered"] == 0
    assert figures["model_ms"]["samples"] > 0
    assert min(figures[name] for name in ("frames_per_s", "memory_mib", "start_s", "first_start_s")) > 0
    assert said["environment"]["cores"] == 1
    assert said["environment"]["runtime"].startswith("onnxruntime")
    assert said["environment"]["form"] == "reference"
    made = statement.read((tmp_path / "a.json").read_bytes(), "a.json")
    assert made.digest == f"sha256:{digest}"
    assert (made.predicate.device_class, made.predicate.verdict) == ("strict", "missed")
    assert [text.partition(":")[0] for text in made.predicate.shortfalls] == ["seconds", "scenario"]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (["--class", "toaster"], "--class: expected one of amd64-gateway"),
        (["--out", "a.json"], "--out: expected --class too"),
        (["--class", "none.yaml"], "cannot read the device class"),
    ],
)
def test_a_bench_that_could_not_be_judged_is_not_begun(
    said: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["model", "bench", str(PARTS), *said]) == 78
    assert reason in capsys.readouterr().err


def test_another_architecture_s_class_is_not_claimed(capsys: pytest.CaptureFixture[str]) -> None:
    other = next(n for n, d in DEVICES.items() if d.architecture != machine.architecture())
    assert main(["model", "bench", str(PARTS), "--class", other, "--seconds", "1"]) == 78
    assert "measure on such a device" in capsys.readouterr().err


@pytest.mark.parametrize("said", ["--cameras 0", "--fps nan", "--seconds 0.5", "--threads x"])
def test_a_number_that_cannot_be_is_said_at_once(said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["model", "bench", str(PARTS), *said.split()])
    assert f"{said.split(maxsplit=1)[0]}: expected " in capsys.readouterr().err
