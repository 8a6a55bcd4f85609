import pytest

from skerry.errors import ConfigError
from skerry.inference.cores import cpu_model, default_threads, quota, usable_cores
from skerry.inference.settings import InferenceSettings
from skerry.settings import parse


def _parse(*models: dict[str, object]) -> InferenceSettings:
    raw = {"site": "s", "module": "inference", "state": "/tmp/x", "frames": "/tmp/y", "models": list(models)}
    return parse(InferenceSettings, raw, "test")


def test_defaults_are_auto_on_the_cpu_without_batching() -> None:
    (use,) = _parse({"package": "p"}).models
    assert (use.runtime, use.device, use.threads, use.batch.max) == ("auto", "cpu", None, 1)


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ([], "expected at least 1 items, got 0"),
        ([{"package": ""}], "$.models[0].package: expected"),
        ([{"package": "p", "runtime": "tensorflow"}], "expected one of auto, onnxruntime, openvino"),
        (
            [{"package": "p", "runtime": "openvino", "device": "cuda"}],
            "expected one of cpu, gpu, npu with runtime",
        ),
        ([{"package": "p", "threads": 0}], "$.models[0].threads: expected"),
        (
            [{"package": "p"}, {"package": "q"}],
            "expected one model for every other camera, got models[0] and models[1]",
        ),
        (
            [{"package": "p", "cameras": ["a"]}, {"package": "q", "cameras": ["b", "a"]}],
            "expected one model for camera 'a', got models[0] and models[1]",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(models: list[dict[str, object]], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _parse(*models)
    assert said in str(caught.value)


def test_half_of_the_cores_run_the_model() -> None:
    assert [default_threads(n) for n in (1, 2, 3, 4, 8)] == [1, 1, 1, 2, 4]
    assert usable_cores() >= 1


def test_a_container_with_a_quota_has_fewer_cores_than_the_machine() -> None:
    assert quota("max 100000\n") > 1000
    assert quota("150000 100000\n") == 2
    assert quota("50000 100000\n") == 1


def test_processors_are_named_on_intel_and_arm() -> None:
    assert cpu_model("processor : 0\nmodel name : Xeon 5\n\nprocessor : 1\nmodel name : Xeon 5\n").endswith(
        " Xeon 5"
    )
    assert cpu_model("processor : 0\nCPU part : 0xd0b\n").endswith(" 0xd0b")
    assert cpu_model("") != ""
