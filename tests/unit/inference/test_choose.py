from pathlib import Path

import msgspec
import numpy as np
import pytest

from skerry.errors import ConfigError
from skerry.inference import choose as choosing
from skerry.inference.choose import Choice, choose, difference, fastest, measure, remembered
from skerry.inference.measure import Measurement
from skerry.inference.runtimes import Place, installed
from tiny_models import moody_model, tiny_package


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
