"""What images are made of: locks, what is left of the wheels, and the list of it."""

import json
import re
import sys
import types
from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from needs import ROOT

LOCKS = ROOT / "requirements"
PIN = re.compile(r"^([a-z0-9-]+)==(\S+)( ; [^\\]+?)? \\$", re.MULTILINE)


def script(name: str, folder: str = "scripts") -> types.ModuleType:
    """A script of ours as a module; it has no ending, and leaves no byte code."""
    module = types.ModuleType(name.replace("-", "_"))
    sys.modules[module.__name__] = module  # dataclasses look their module up
    code = compile((ROOT / folder / name).read_text(encoding="utf-8"), name, "exec")
    module.__dict__["__file__"] = str(ROOT / folder / name)
    exec(code, module.__dict__)
    return module


assemble, build_images = script("assemble"), script("build-images")
put_package = script("put-package", "Dockerfiles")


def pins(name: str) -> set[tuple[str, str]]:
    text = (LOCKS / f"{name}.txt").read_text(encoding="utf-8")
    return {(found, version) for found, version, _ in PIN.findall(text)}


@pytest.mark.parametrize("name", [i.lock for i in build_images.IMAGES.values() if i.lock])
def test_an_image_runs_the_versions_that_are_tested(name):
    extra = {found for found, _ in pins(name) - pins("dev")}
    allowed = {"uplink-azure": None, "inference-gpu": {"onnxruntime-gpu"}}.get(name, set())
    # Azure's uplink is tested in an environment of its own, which is made from its lock.
    assert allowed is None or extra == allowed
    assert pins(name)


@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("decision", {"numpy", "opencv-python-headless", "zstandard", "cryptography"}),
        ("buffer", {"numpy", "opencv-python-headless", "pyyaml"}),
        ("uplink", {"numpy", "opencv-python-headless", "pyyaml"}),
        ("updater", {"numpy", "opencv-python-headless", "onnxruntime", "cryptography", "pyyaml"}),
        ("capture", {"onnxruntime", "openvino", "pyyaml"}),
        ("inference-openvino", {"onnxruntime", "av"}),
        ("inference-gpu", {"onnxruntime", "openvino", "av"}),
    ],
)
def test_an_image_has_nothing_that_it_does_not_run(name, without):
    assert not without & {found for found, _ in pins(name)}


def test_every_image_that_a_rendering_can_name_is_one_that_is_built():
    text = (ROOT / "modules/skerry/deploy/images.py").read_text(encoding="utf-8")
    named = set(re.findall(r'"(uplink-azure|inference-\w+)"', text)) | {
        "broker",
        "capture",
        "decision",
        "buffer",
        "updater",
    }
    assert named | {"uplink"} == set(build_images.IMAGES)


def test_the_image_with_wheels_of_cuda_has_those_and_else_what_the_one_without_has():
    added = pins("inference-gpu-cuda") - pins("inference-gpu")
    assert {name for name, _ in added} >= {"nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-cufft"}
    assert all(name.startswith("nvidia-") for name, _ in added)
    assert pins("inference-gpu") <= pins("inference-gpu-cuda")


def installed(place: Path) -> Path:
    """A distribution as pip leaves it."""
    files = {
        "thing/__init__.py": "WORDS = ('a', 'b')\n", "thing/tests/test_thing.py": "", "thing/core.pyi": "",
        "thing/include/thing.h": "", "bin/thing": "",
        "thing-1.2.dist-info/METADATA":
            "Metadata-Version: 2.4\nName: Thing\nVersion: 1.2\nLicense-Expression: MIT\n",
        "thing-1.2.dist-info/RECORD": "thing/__init__.py,,\n",
        "pip/__init__.py": "", "pip-25.dist-info/METADATA": "Metadata-Version: 2.1\nName: pip\nVersion: 25\n",
        "pip-25.dist-info/RECORD": "pip/__init__.py,,\npip-25.dist-info/METADATA,,\n",
    }  # fmt: skip
    for name, text in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text, encoding="utf-8")
    return place


def trimmed(place: Path, date: int = 0) -> dict[str, bytes]:
    installed(place)
    assemble.date(place, date)
    assemble.remove_distributions(place, assemble.TOOLS)
    assemble.drop(place)
    assemble.compile_all(place)
    return {str(p.relative_to(place)): p.read_bytes() for p in place.rglob("*") if p.is_file()}


def test_pip_tests_stubs_and_headers_are_left_out(tmp_path):
    tag = sys.implementation.cache_tag
    assert sorted(trimmed(tmp_path)) == [
        "thing-1.2.dist-info/METADATA", "thing-1.2.dist-info/RECORD", "thing/__init__.py",
        f"thing/__pycache__/__init__.{tag}.pyc",
    ]  # fmt: skip


def test_byte_code_is_the_same_wherever_it_is_made_and_whatever_the_date(tmp_path):
    one = trimmed(tmp_path / "one")
    assert one == trimmed(tmp_path / "elsewhere/two", 1_700_000_000)
    assert (
        b"/opt/skerry/thing/__init__.py"
        in one[f"thing/__pycache__/__init__.{sys.implementation.cache_tag}.pyc"]
    )


def test_the_list_names_what_is_there_with_licence_and_version(tmp_path):
    trimmed(tmp_path)
    listed = assemble.sbom([str(tmp_path)], "skerry-test")
    assert (listed["bomFormat"], listed["specVersion"]) == ("CycloneDX", "1.5")
    assert listed["components"] == [
        {
            "type": "library", "bom-ref": "pkg:pypi/thing@1.2", "name": "thing", "version": "1.2",
            "purl": "pkg:pypi/thing@1.2", "licenses": [{"expression": "MIT"}],
        }
    ]  # fmt: skip
    assert json.dumps(listed) == json.dumps(assemble.sbom([str(tmp_path)], "skerry-test"))


def elf(machine: int) -> bytes:
    return b"\x7fELF" + bytes(14) + machine.to_bytes(2, "little")


@pytest.mark.parametrize(
    ("content", "machine"),
    [(elf(62), "x86_64"), (elf(183), "aarch64"), (elf(243), None), (b"INPUT(libz.so.1)", None), (b"", None)],
)
def test_a_library_says_what_machine_it_is_for(tmp_path, content, machine):
    (tmp_path / "a.so").write_bytes(content)
    assert assemble.machine_of(tmp_path / "a.so") == machine


def test_a_library_for_another_machine_does_not_get_into_an_image(tmp_path, monkeypatch):
    place = installed(tmp_path / "opt/skerry")
    (place / "thing/core.so.1").write_bytes(elf(62))
    monkeypatch.setattr(sys, "argv", ["assemble", "wheels", str(tmp_path), "--machine", "aarch64"])
    with pytest.raises(SystemExit, match=r"thing/core\.so\.1: expected code for aarch64, got x86_64"):
        assemble.main()


@pytest.mark.parametrize(
    ("wanted", "here", "machine"),
    [
        ("", "x86_64", ""), ("linux/amd64", "x86_64", ""), ("linux/arm64", "x86_64", "aarch64"),
        ("linux/arm64", "aarch64", ""), ("linux/arm64/v8", "x86_64", "aarch64"),
        ("linux/amd64", "aarch64", "x86_64"),
    ],
)  # fmt: skip
def test_wheels_are_chosen_by_name_for_another_architecture_alone(wanted, here, machine):
    assert build_images.foreign(wanted, here) == machine


def test_without_a_name_every_image_is_built_but_the_one_with_a_base_of_its_own():
    assert set(build_images.chosen(None, [])) == set(build_images.IMAGES) - {"inference-gpu"}


def test_a_package_is_built_alone_unless_modules_are_named_too():
    parts = ROOT / "models/parts"
    assert set(build_images.chosen(None, [parts])) == {"package-parts"}
    assert set(build_images.chosen(["decision"], [parts])) == {"package-parts", "decision"}


def test_a_folder_that_is_no_package_is_refused(tmp_path):
    with pytest.raises(ArgumentTypeError, match=r"manifest\.json"):
        build_images._package(str(tmp_path))


def test_a_package_whose_folder_cannot_name_an_image_is_refused(tmp_path):
    (tmp_path / "My Parts").mkdir()
    (tmp_path / "My Parts/manifest.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ArgumentTypeError, match="'My Parts'"):
        build_images._package(str(tmp_path / "My Parts"))


def read(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): p.read_text(encoding="utf-8") for p in folder.rglob("*") if p.is_file()
    }


def package(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_a_package_replaces_what_was_there_and_leaves_nothing_beside(tmp_path):
    volume = tmp_path / "models"
    volume.mkdir()
    put_package.put(package(tmp_path / "one", model="1", labels="a"), volume / "parts")
    put_package.put(package(tmp_path / "two", model="2"), volume / "parts")
    assert read(volume) == {"parts/model": "2"}


@pytest.mark.parametrize("left", [".parts.new", ".parts.old"])
def test_what_an_interrupted_copy_left_is_cleared(tmp_path, left):
    volume = tmp_path / "models"
    package(volume / left, half="of it")
    package(volume / "parts", model="0")
    put_package.put(package(tmp_path / "one", model="1"), volume / "parts")
    assert read(volume) == {"parts/model": "1"}


@pytest.mark.parametrize("where", ["parts", ".parts.old"])
def test_a_package_that_cannot_be_put_leaves_the_one_before(tmp_path, where):
    """Also if that stands aside, since a run was stopped while it put another in its place."""
    package(tmp_path / "models" / where, model="1")
    broken = package(tmp_path / "two")
    (broken / "model").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OSError, match="two/model"):
        put_package.put(broken, tmp_path / "models/parts")
    assert read(tmp_path / "models/parts") == {"model": "1"}
