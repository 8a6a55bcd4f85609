"""One contract for every runtime that is installed, on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from skerry.errors import ConfigError, PackageError, Unavailable
from skerry.inference import runtimes
from skerry.inference.runtimes import Place, SessionFailed, Tensor, installed, open_session, zeros
from skerry.inference.settings import DEVICES
from skerry.models.package import Package
from tiny_models import bright_model, tiny_package

ALL = pytest.mark.parametrize("name", list(runtimes.RUNTIMES))


@pytest.fixture(autouse=True)
def _skip_what_is_not_installed(request: pytest.FixtureRequest) -> None:
    name = getattr(request.node, "callspec", None) and request.node.callspec.params.get("name")
    if name and name not in installed():
        pytest.skip(f"{name} is not installed")


@ALL
def test_session_says_its_inputs_and_outputs(name: str, tmp_path: Path) -> None:
    session = open_session(name, tiny_package(tmp_path), Place())
    assert session.inputs == {"x": Tensor((1, 3, 6, 8), "float32")}
    assert session.outputs == {"out": Tensor((1, 1, 9), "float32")}


@ALL
def test_session_computes_what_the_graph_says(name: str, tmp_path: Path) -> None:
    session = open_session(name, tiny_package(tmp_path), Place())
    for brightness in (0.0, 0.25, 1.0):
        outputs = session.run({"x": np.full((1, 3, 6, 8), brightness, np.float32)})
        assert list(outputs) == ["out"]
        assert outputs["out"].dtype == np.float32
        assert np.allclose(outputs["out"], [[[0.5, 0.5, 0.25, 0.5, brightness, 1, 0, 0, 0.25]]], atol=1e-6)


@ALL
def test_session_leaves_its_feeds_alone(name: str, tmp_path: Path) -> None:
    session = open_session(name, tiny_package(tmp_path), Place())
    feeds = {"x": np.random.default_rng(0).random((1, 3, 6, 8), np.float32)}
    before = feeds["x"].copy()
    session.run(feeds)
    assert np.array_equal(feeds["x"], before)


@ALL
def test_same_feeds_give_the_same_bits(name: str, tmp_path: Path) -> None:
    session = open_session(name, tiny_package(tmp_path), Place())
    feeds = {"x": np.random.default_rng(0).random((1, 3, 6, 8), np.float32)}
    first = {k: v.copy() for k, v in session.run(feeds).items()}
    session.run(zeros(session))
    assert np.array_equal(session.run(feeds)["out"], first["out"])


@ALL
def test_outputs_stay_as_they_are_when_the_session_runs_again(name: str, tmp_path: Path) -> None:
    session = open_session(name, tiny_package(tmp_path), Place())
    first = session.run({"x": np.full((1, 3, 6, 8), 0.5, np.float32)})["out"]
    session.run(zeros(session))
    assert first[0, 0, 4] == np.float32(0.5)


@ALL
def test_batches_of_any_size_run_where_the_package_says_so(name: str, tmp_path: Path) -> None:
    spec = {"name": "x", "width": 8, "height": 6, "scale": [255], "batch": 4}
    session = open_session(name, tiny_package(tmp_path, bright_model("n"), input=spec), Place())
    for size in (1, 4, 2):
        feeds = {"x": np.arange(size, dtype=np.float32).repeat(144).reshape(size, 3, 6, 8)}
        assert np.allclose(session.run(feeds)["out"][:, 0, 4], np.arange(size))


@ALL
def test_feeds_of_the_wrong_shape_fail_the_run_not_the_process(name: str, tmp_path: Path) -> None:
    session = open_session(name, tiny_package(tmp_path), Place())
    with pytest.raises(SessionFailed) as caught:
        session.run({"x": np.zeros((1, 3, 9, 9), np.float32)})
    assert "\n" not in str(caught.value)
    assert session.run(zeros(session))["out"].shape == (1, 1, 9)


@ALL
def test_a_file_that_is_no_model_is_a_package_error(name: str, tmp_path: Path) -> None:
    package = tiny_package(tmp_path)
    package.model.write_bytes(b"not a model")
    with pytest.raises(PackageError, match=f"{name} cannot load it"):
        open_session(name, package, Place())


@ALL
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"input": {"name": "x", "width": 16, "height": 6}},
            r"input 'x': expected \[1, 3, 6, 16\], got \[1, 3, 6, 8\]",
        ),
        ({"input": {"name": "y", "width": 8, "height": 6}}, "input 'y': expected it in the model, got x"),
        ({"input": {"name": "x", "width": 8, "height": 6, "dtype": "uint8"}}, "expected uint8, got float32"),
        ({"input": {"name": "x", "width": 8, "height": 6, "batch": 2}}, "expected a dynamic batch"),
        (
            {"outputs": [{"name": "out", "shape": [1, 2, 9]}]},
            r"output 'out': expected \[1, 2, 9\], got \[1, 1, 9\]",
        ),
        ({"outputs": [{"name": "o", "shape": [1, 1, 9]}]}, "output 'o': expected it in the model, got out"),
    ],
)
def test_a_model_that_is_not_what_its_manifest_says_is_refused(
    name: str, changes: dict[str, object], said: str, tmp_path: Path
) -> None:
    with pytest.raises(PackageError, match=said):
        open_session(name, tiny_package(tmp_path, **changes), Place())


@ALL
def test_a_model_with_a_second_input_is_refused(name: str, tmp_path: Path) -> None:
    model = bright_model()
    model.graph.input.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1]))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1]))
    model.graph.node.append(helper.make_node("Neg", ["y"], ["z"]))
    onnx.checker.check_model(model)
    with pytest.raises(PackageError, match="input: expected only 'x', got 'y' too"):
        open_session(name, tiny_package(tmp_path, model), Place())


@ALL
def test_compiled_models_are_kept_in_the_cache_and_answer_the_same(name: str, tmp_path: Path) -> None:
    package = tiny_package(tmp_path / "p")
    feeds = {"x": np.random.default_rng(0).random((1, 3, 6, 8), np.float32)}
    first = open_session(name, package, Place(cache=tmp_path / "cache")).run(feeds)["out"].copy()
    again = open_session(name, package, Place(cache=tmp_path / "cache")).run(feeds)["out"]
    assert np.array_equal(first, again)


@ALL
def test_a_device_that_is_not_here_says_what_to_do(name: str, tmp_path: Path) -> None:
    package = tiny_package(tmp_path)
    for device in DEVICES[name]:
        said = _refusal(name, package, device)
        assert said is None or (said.startswith("device: ") and ("install" in said or "driver" in said))


def _refusal(name: str, package: Package, device: str) -> str | None:
    """Why the package cannot run there; None where it can."""
    try:
        open_session(name, package, Place(device))
    except (ConfigError, Unavailable) as error:
        return str(error)
    return None


def test_a_runtime_that_is_not_installed_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(runtimes._DISTRIBUTIONS, "openvino", ("skerry-has-no-such-distribution",))
    assert "openvino" not in installed()
    with pytest.raises(ConfigError, match=r"openvino is not installed \(pip install 'skerry\[openvino\]'\)"):
        open_session("openvino", tiny_package(tmp_path), Place())


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_using_one_runtime_loads_no_other_and_nothing_that_phones_home(name: str, tmp_path: Path) -> None:
    tiny_package(tmp_path)
    program = (
        "import sys; from pathlib import Path\n"
        "from skerry.inference.runtimes import Place, open_session\n"
        "from skerry.models.package import load\n"
        "assert not {'onnxruntime', 'openvino', 'cv2'} & set(sys.modules), 'imported before use'\n"
        f"open_session({name!r}, load(Path({str(tmp_path)!r})), Place())\n"
        "print(*sorted({m.split('.')[0] for m in sys.modules if not m.startswith('skerry')}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert name in loaded
    assert not ({"onnxruntime", "openvino"} - {name}) & loaded
    assert not {"openvino_telemetry", "requests", "cv2"} & loaded


@pytest.mark.parametrize("module", ["skerry.inference.runtimes.onnxruntime", "skerry.models.fold"])
def test_onnx_runtime_does_not_report_to_its_makers(module, tmp_path):
    """Where it does, it first leaves an identifier of the device in the user's cache."""
    package = tiny_package(tmp_path)
    code = f"import {module} as it\nit.ort.InferenceSession({str(package.model)!r})"
    home = tmp_path / "home"
    home.mkdir()
    environment = {
        k: v for k, v in os.environ.items() if k not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    }
    subprocess.run([sys.executable, "-c", code], env={**environment, "HOME": str(home)}, check=True)
    assert not list(home.rglob("*onnxruntime*"))
