from pathlib import Path

import msgspec
import numpy as np
import pytest

from skerry.errors import ConfigError
from skerry.inference import choose as choosing
from skerry.inference.choose import Choice, candidates, choose, difference, fastest, measure, remembered
from skerry.inference.measure import Measurement
from skerry.inference.model import Model
from skerry.inference.runtimes import Place, installed
from skerry.inference.settings import ModelUse
from tiny_models import add_variant, bright_model, frame, golden_of, moody_model, tiny_package, write_package


def _measured(runtime: str, ms: float, rss: float = 100, error: str = "") -> Measurement:
    return Measurement(runtime=runtime, version="1", ms=ms, rss_mb=rss, error=error)


def test_the_fastest_wins() -> None:
    assert fastest([_measured("a", 9), _measured("b", 7)]) == "b"


def test_near_a_tie_the_smaller_wins() -> None:
    assert fastest([_measured("a", 7.3, rss=80), _measured("b", 7.0, rss=120)]) == "a"
    assert fastest([_measured("a", 7.5, rss=80), _measured("b", 7.0, rss=120)]) == "b"


def test_one_that_failed_never_wins() -> None:
    assert fastest([_measured("a", 9), _measured("b", 1, error="outputs differ")]) == "a"


def test_when_none_can_be_used_each_says_why() -> None:
    with pytest.raises(ConfigError) as caught:
        fastest([_measured("a", 0, error="no driver"), _measured("b", 0, error="crashed")])
    assert caught.value.problems == ("runtime: a: no driver", "runtime: b: crashed")


def test_difference_is_relative_to_the_largest_value() -> None:
    first = {"o": np.array([1000.0, 0.0])}
    assert difference(first, {"o": np.array([1001.0, 0.0])}) == pytest.approx(0.001)
    assert difference({"o": np.array([0.5])}, {"o": np.array([0.25])}) == 0.25
    assert difference(first, {"o": np.array([1000.0, np.nan])}) == float("inf")
    assert difference(first, {"o": np.zeros(3)}) == float("inf")
    assert difference(first, {}) == float("inf")


def test_a_choice_is_measured_once_and_remembered(tmp_path: Path) -> None:
    package = tiny_package(tmp_path / "p")
    place = Place("cpu", 1, tmp_path / "cache")
    beats: list[int] = []
    first = choose(package, place, lambda: beats.append(1))
    assert first.runtime in installed()
    assert [m.error for m in first.measurements] == [""] * len(installed())
    assert len(beats) == len(installed())
    assert choose(package, place, lambda: beats.append(2)) == first
    assert 2 not in beats
    assert list(remembered(place.cache).values()) == [first]
    choose(package, Place("cpu", 2, tmp_path / "cache"), lambda: beats.append(3))
    assert 3 in beats, "another number of threads is another measurement"


def test_memory_that_cannot_be_read_is_measured_again(tmp_path: Path) -> None:
    package = tiny_package(tmp_path / "p")
    (tmp_path / "runtimes.json").write_text("{broken")
    choice = choose(package, Place("cpu", 1, tmp_path))
    content = msgspec.json.decode((tmp_path / "runtimes.json").read_bytes(), type=dict[str, Choice])
    assert list(content.values()) == [choice]


def test_a_runtime_that_does_not_agree_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "TOLERANCE", -1.0)
    first, *others = measure(tiny_package(tmp_path), Place(), installed())
    assert first.error == ""
    assert all(m.error.startswith("outputs differ: expected at most -1") for m in others)


def test_a_runtime_that_fails_is_measured_as_failed(tmp_path: Path) -> None:
    package = tiny_package(tmp_path)
    package.model.write_bytes(b"changed since it was loaded")
    (one,) = measure(package, Place(), ["onnxruntime"])
    assert "expected sha256" in one.error


def test_a_device_that_no_runtime_has_is_refused(tmp_path: Path) -> None:
    package = tiny_package(tmp_path)
    with pytest.raises(ConfigError, match="runtime: none for device abacus is installed"):
        choose(package, Place("abacus"))


def test_a_device_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"runtime: onnxruntime: device: cuda is not in this onnxruntime"):
        fastest(measure(tiny_package(tmp_path, moody_model()), Place("cuda"), ["onnxruntime"]))


def _forms(choice: Choice) -> dict[str, str]:
    return {m.title: m.error for m in choice.measurements}


def test_a_variant_that_is_right_may_win_and_is_what_the_model_runs(tmp_path: Path) -> None:
    folder = write_package(tmp_path / "p", golden=golden_of(tmp_path / "p", 0.5))
    package = add_variant(folder, "int8", precision="int8", runtimes=["onnxruntime"])
    choice = choose(package, Place(), precision="int8")
    assert (choice.runtime, choice.form, _forms(choice)) == ("onnxruntime", "int8", {"onnxruntime int8": ""})
    model = Model(ModelUse(package=str(folder), precision="int8"), tmp_path / "cache", 0.5)
    assert (model.package.form, model.package.model.name) == ("int8", "int8.onnx")
    assert model.look(frame(0.5)).objects[0].label == "bolt"


def test_every_runtime_is_tried_with_every_form_that_it_may_load(tmp_path: Path) -> None:
    folder = write_package(tmp_path)
    add_variant(folder, "again", runtimes=["onnxruntime"])
    package = add_variant(folder, "int8", precision="int8")
    pairs = [("onnxruntime", "reference"), ("onnxruntime", "again"), ("onnxruntime", "int8")]
    more = [("openvino", "reference"), ("openvino", "int8")]
    assert sorted(candidates(package, "cpu")) == sorted([*pairs, *more])
    assert candidates(package, "cpu")[:2] == [pairs[0], more[0]], "what others are compared with comes first"
    assert candidates(package, "cpu", "openvino", "int8") == [("openvino", "int8")]


def test_forms_are_measured_once_and_again_when_there_is_another(tmp_path: Path) -> None:
    folder, place = write_package(tmp_path / "p"), Place(cache=tmp_path / "cache")
    package = add_variant(folder, "again")
    choice = choose(package, place, runtime="onnxruntime")
    assert _forms(choice) == {"onnxruntime": "", "onnxruntime again": ""}
    assert choose(package, place, runtime="onnxruntime") == choice
    other = add_variant(folder, "more")
    assert "onnxruntime more" in _forms(choose(other, place, runtime="onnxruntime"))


def test_a_variant_that_sees_something_else_loses_and_says_what(tmp_path: Path) -> None:
    folder = write_package(tmp_path / "p", golden=golden_of(tmp_path / "p", 0.5))
    wrong = bright_model(box=(0.25, 0.5, 0.25, 0.5))
    package = add_variant(folder, "int8", wrong, precision="int8", runtimes=["onnxruntime"])
    choice = choose(package, Place())
    assert choice.form == "reference"
    assert "golden pictures: grey-128.png: expected bolt" in _forms(choice)["onnxruntime int8"]
    with pytest.raises(ConfigError, match="runtime: onnxruntime int8: golden pictures"):
        choose(package, Place(), precision="int8")


def test_a_variant_in_32_bits_is_held_to_the_references_numbers(tmp_path: Path) -> None:
    folder = write_package(tmp_path / "p", golden=golden_of(tmp_path / "p", 0.5))
    near = bright_model(box=(0.505, 0.5, 0.25, 0.5))
    package = add_variant(folder, "near", near, runtimes=["onnxruntime"])
    assert "outputs differ: expected at most 0.001" in _forms(choose(package, Place()))["onnxruntime near"]


def test_without_pictures_a_variant_is_held_to_its_tolerance_or_not_used(
    tmp_path: Path,
) -> None:
    folder = write_package(tmp_path / "p")
    near = bright_model(box=(0.505, 0.5, 0.25, 0.5))
    add_variant(folder, "good", near, precision="int8", runtimes=["onnxruntime"], tolerance=0.01)
    add_variant(folder, "bad", near, precision="int8", runtimes=["onnxruntime"], tolerance=0.002)
    package = add_variant(folder, "blind", near, precision="int8", runtimes=["onnxruntime"])
    said = _forms(choose(package, Place(), precision="int8"))
    assert said["onnxruntime good"] == ""
    assert said["onnxruntime bad"].startswith("outputs differ: expected at most 0.002, got 0.005")
    assert said["onnxruntime blind"].startswith("nothing tells if it is right")


def test_a_named_runtime_takes_32_bits_first_and_a_precision_that_is_not_there_is_refused(
    tmp_path: Path,
) -> None:
    folder = write_package(tmp_path / "p", golden=golden_of(tmp_path / "p", 0.5))
    add_variant(folder, "int8", precision="int8")
    plain = Model(ModelUse(package=str(folder), runtime="onnxruntime"), tmp_path, 0.5)
    assert (plain.package.form, plain.choice) == ("reference", None)
    asked = Model(ModelUse(package=str(folder), runtime="onnxruntime", precision="int8"), tmp_path, 0.5)
    assert asked.package.form == "int8"
    with pytest.raises(ConfigError, match=r"precision: expected fp16 for onnxruntime in tiny@1.0"):
        Model(ModelUse(package=str(folder), runtime="onnxruntime", precision="fp16"), tmp_path, 0.5)
