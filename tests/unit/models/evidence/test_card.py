"""`MODEL_CARD.md`: a package for people."""

from pathlib import Path

import msgspec

from evidenced import CALIBRATION, built
from skerry.models import package as packages
from skerry.models.evidence.card import card


def test_it_tells_what_it_is_for_its_data_its_figures_and_its_limits(tmp_path: Path) -> None:
    folder, made = built(tmp_path / "tiny", budget={"latency_ms": 12.5})
    text = card(packages.load(folder), made)
    assert text.startswith("# tiny@1.0.0\n\nGood parts and bad ones.\n")
    for line in (
        f"| calibration set | {CALIBRATION} | 64 pictures, pictures |",
        "2. onnx-int8 (onnxruntime 1.31.1): method minmax; outputs differ by 0.01",
        "| onnx-int8 | onnxruntime 1.31.1 | avx512_vnni | mAP50-95 | 0.9123 | -0.0040 | 390 | 3 | 7 |",
        "| openvino-int8 | refused: map fell by 0.2 |  |  |  |  |  |  |  |",
        "* openvino-int8 was made and refused: map fell by 0.2.",
        "| latency | at most 12.5 ms a frame |",
        "| memory | no budget |",
    ):
        assert line in text.splitlines(), line


def test_the_same_record_gives_the_same_card(tmp_path: Path) -> None:
    folder, made = built(tmp_path / "tiny")
    assert card(packages.load(folder), made) == card(packages.load(folder), made)


def test_a_record_without_data_or_figures_says_so(tmp_path: Path) -> None:
    folder, made = built(tmp_path / "tiny")
    bare = msgspec.structs.replace(
        made, data=(), steps=(), artifacts=(msgspec.structs.replace(made.artifacts[0], figures=()),)
    )
    text = card(packages.load(folder), bare)
    assert "Nothing was measured on labelled pictures." in text
    assert "| onnx-int8 | not measured |" in text
    assert "## Steps" not in text


def test_text_of_others_breaks_no_table(tmp_path: Path) -> None:
    folder, made = built(tmp_path / "tiny")
    refused = msgspec.structs.replace(made.artifacts[1], reason="a | b\n<script>")
    text = card(packages.load(folder), msgspec.structs.replace(made, artifacts=(refused,)))
    assert "refused: a \\| b &lt;script>" in text
