"""Foreign models on real footage, through import, both runtimes and the decoders."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

import needs
from skerry.cli import main
from skerry.inference.decoders import decode
from skerry.inference.model import Model
from skerry.inference.preprocess import Preprocessor
from skerry.inference.runtimes import Place, installed, open_session
from skerry.inference.settings import ModelUse
from skerry.messages import Detection
from skerry.models.package import load

pytestmark = needs.data

WALK = needs.DATA / "one-by-one-person-detection.mp4"
TABLE = needs.DATA / "bottle-detection.mp4"
TOLERANCE = 0.01
"""Of boxes and scores. Runtimes and decoders of H.264 differ in the last digits, not in this one."""

Find = Callable[[Path, np.ndarray], tuple[Detection, ...]]


@pytest.fixture(scope="session")
def fastestdet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _import(
        tmp_path_factory, "fastestdet", "fastestdet.onnx", "--labels", str(needs.DATA / "coco.names")
    )


@pytest.fixture(scope="session")
def ultraface(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _import(tmp_path_factory, "ultraface", "ultraface-slim-320.onnx")


def _import(factory: pytest.TempPathFactory, name: str, file: str, *options: str) -> Path:
    out = factory.mktemp("packages") / name
    short = needs.ROOT / "sites" / "models" / f"{name}.yaml"
    words = ["model", "import", str(needs.DATA / file), "--manifest", str(short), "--out", str(out)]
    assert main([*words, "--no-measure", *options]) == 0
    return out


@pytest.fixture(params=["onnxruntime", "openvino"])
def find(request: pytest.FixtureRequest, tmp_path: Path) -> Find:
    """Detections in a picture, by each runtime that is installed."""
    if request.param not in installed():
        pytest.skip(f"{request.param} is not installed")

    def one(package: Path, picture: np.ndarray) -> tuple[Detection, ...]:
        model = Model(ModelUse(package=str(package), runtime=request.param), tmp_path, 1.0)
        (result,), _ = model.infer([model.prepare(picture)])
        assert result.reason == ""
        return result.objects

    return one


def frame(video: Path, number: int) -> np.ndarray:
    """Frame `number` of a video, from 1."""
    capture = cv2.VideoCapture(str(video))
    for _ in range(number):
        assert capture.grab()
    there, picture = capture.retrieve()
    assert there
    return picture


def _of(found: tuple[Detection, ...], label: str) -> list[Detection]:
    return [d for d in found if d.label == label]


@pytest.mark.parametrize(
    ("number", "score", "box"),
    [
        (120, 0.898, (0.493, 0.015, 0.681, 0.887)),
        (300, 0.938, (0.492, 0.006, 0.704, 0.857)),
        (660, 0.921, (0.470, 0.000, 0.753, 0.936)),
    ],
)
def test_fastestdet_finds_the_person(
    find: Find, fastestdet: Path, number: int, score: float, box: tuple[float, ...]
) -> None:
    (person,) = _of(find(fastestdet, frame(WALK, number)), "person")
    assert person.box == pytest.approx(box, abs=TOLERANCE)
    assert person.score == pytest.approx(score, abs=TOLERANCE)


def test_fastestdet_finds_no_person_at_the_empty_table(find: Find, fastestdet: Path) -> None:
    assert _of(find(fastestdet, frame(WALK, 60)), "person") == []


def test_fastestdet_finds_the_three_bottles(find: Find, fastestdet: Path) -> None:
    bottles = _of(find(fastestdet, frame(TABLE, 70)), "bottle")
    assert sorted(round((b.box[0] + b.box[2]) / 2, 1) for b in bottles) == [0.1, 0.5, 0.8]


@pytest.mark.parametrize(
    ("number", "box"), [(686, (0.706, 0.058, 0.761, 0.193)), (855, (0.734, 0.163, 0.792, 0.289))]
)
def test_ultraface_finds_the_face(find: Find, ultraface: Path, number: int, box: tuple[float, ...]) -> None:
    (face,) = find(ultraface, frame(WALK, number))
    assert face.label == "face"
    assert face.box == pytest.approx(box, abs=TOLERANCE)


def test_folding_the_face_model_more_than_halves_its_nodes(ultraface: Path) -> None:
    from skerry.models.importing import operators

    assert sum(operators(ultraface / "model.onnx").values()) < 217 / 1.9


@pytest.mark.parametrize("number", [60, 120, 855])
def test_runtimes_agree_to_a_thousandth(fastestdet: Path, ultraface: Path, number: int) -> None:
    if len(installed()) < 2:
        pytest.skip("needs two runtimes")
    picture = frame(WALK, number)
    for folder in (fastestdet, ultraface):
        package = load(folder)
        prepare = Preprocessor(package.manifest.input)
        placement = prepare(picture)
        feeds = {package.manifest.input.name: prepare.tensor}
        outputs = [open_session(name, package, Place()).run(feeds) for name in installed()]
        for name, values in outputs[0].items():
            assert np.abs(values - outputs[1][name]).max() < 1e-3
        found = [decode(o, package.manifest, package.labels, placement) for o in outputs]
        assert [d.label for d in found[0]] == [d.label for d in found[1]]
