"""Classes of devices: one source, every error at once, and what an installed package reads."""

from pathlib import Path

import pytest
import yaml
from msgspec.structs import asdict

import needs
from skerry.deploy.device_files import documents, read, read_class
from skerry.deploy.devices import DEVICES, Budget
from skerry.errors import ConfigError

FOLDER = needs.ROOT / "device-classes"


def changed(folder: Path, name: str = "board", **said: object) -> Path:
    raw = yaml.safe_load((FOLDER / "amd64-gateway.yaml").read_text())
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in (raw | said).items() if v is not None}))
    return path


def test_what_is_installed_is_what_the_folder_says() -> None:
    assert read(FOLDER) == DEVICES
    for path, text in documents(needs.ROOT).items():
        assert (needs.ROOT / path).read_text() == text, f"{path} is out of date: make generate"


def test_a_board_a_gateway_a_jetson_and_an_intel_with_accelerators_have_a_whole_budget() -> None:
    assert {"arm64-4gb", "amd64-gateway", "jetson-8gb", "amd64-intel"} <= DEVICES.keys()
    assert DEVICES["amd64-intel"].accelerators == ("intel-gpu", "intel-npu")
    for device in DEVICES.values():
        assert all(value > 0 for value in asdict(device.budget).values())
        assert set(device.basis) == set(Budget.__struct_fields__)


def test_the_packaged_classes_are_in_the_distribution() -> None:
    import tomllib

    project = tomllib.loads((needs.ROOT / "pyproject.toml").read_text())
    assert "deploy/devices.json" in project["tool"]["setuptools"]["package-data"]["skerry"]


def test_every_problem_of_every_file_is_said_at_once(tmp_path: Path) -> None:
    changed(tmp_path, "one", cores=0, colour="blue")
    changed(tmp_path, "two", budget={"p95_ms": -1}, about=None)
    (tmp_path / "three.yaml").write_text("about: [")
    (tmp_path / "no name.yaml").write_bytes((FOLDER / "amd64-gateway.yaml").read_bytes())
    with pytest.raises(ConfigError) as caught:
        read(tmp_path)
    text = "\n".join(caught.value.problems)
    for fact in (
        "one.yaml: $.cores", "one.yaml: $.colour", "two.yaml: $.budget.p95_ms", "two.yaml: $.about",
        "two.yaml: $.budget.power_w", "three.yaml: $: expected YAML", "no name.yaml: name of the file",
    ):  # fmt: skip
        assert fact in text


def test_a_figure_without_its_reason_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a sentence for each figure of the budget, got .*memory_mib"):
        read_class(changed(tmp_path, basis={"p95_ms": "wished for"}))


def test_a_budget_below_the_class_s_own_load_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected at least the load, 120, got 30"):
        read_class(changed(tmp_path, load={"cameras": 8, "fps": 15}))


def test_a_folder_without_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected files of device classes"):
        read(tmp_path)
    with pytest.raises(ConfigError, match="cannot read the device class"):
        read_class(tmp_path / "none.yaml")
