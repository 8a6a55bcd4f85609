import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from skerry.errors import ConfigError, PackageError
from skerry.models import layout
from skerry.models.manifest import Manifest, Variant, encode
from skerry.models.package import MANIFEST, load, read_manifest
from skerry.settings import parse
from tiny_models import add_variant, bright_model, golden_of, manifest, write_package

SHA = "0" * 64


def test_a_manifest_without_variants_is_written_as_before_there_were_any() -> None:
    raw = json.loads(encode(parse(Manifest, manifest(), "m")))
    assert "variants" not in raw
    assert raw["artifact"] == {"file": "model.onnx", "sha256": SHA, "format": "onnx"}


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    write_package(tmp_path, golden=golden_of(tmp_path, 0.5))
    add_variant(tmp_path, "int8", precision="int8", golden=golden_of(tmp_path, 0.25, score_tolerance=0.1))
    before = read_manifest(tmp_path)
    (tmp_path / MANIFEST).write_bytes(encode(before))
    assert read_manifest(tmp_path) == before
    assert load(tmp_path).using("int8").manifest.golden == before.variants[0].golden


def test_a_variant_takes_the_place_of_the_artifact(tmp_path: Path) -> None:
    write_package(tmp_path, golden=golden_of(tmp_path, 0.5))
    package = add_variant(tmp_path, "half", bright_model(box=(0.5, 0.5, 0.5, 0.5)), precision="fp16")
    half = package.using("half")
    assert (half.form, half.model.name, half.manifest.artifact.precision) == ("half", "half.onnx", "fp16")
    assert half.manifest.golden == package.manifest.golden, "it has none of its own"
    assert package.using("reference") is package
    with pytest.raises(PackageError, match=r"expected one of its variants \(half\), got quarter"):
        package.using("quarter")


def test_forms_with_most_bits_come_first(tmp_path: Path) -> None:
    write_package(tmp_path)
    add_variant(tmp_path, "int8", precision="int8")
    add_variant(tmp_path, "half", precision="fp16", runtimes=["openvino"])
    package = add_variant(tmp_path, "again")
    assert package.forms_for("openvino") == ("reference", "again", "half", "int8")
    assert package.forms_for("onnxruntime") == ("reference", "again", "int8")
    assert package.forms_for("openvino", "int8") == ("int8",)
    assert package.forms_for("onnxruntime", "fp16") == ()


def test_a_changed_byte_in_any_file_of_a_variant_is_found(tmp_path: Path) -> None:
    write_package(tmp_path)
    (tmp_path / "v.xml").write_text("graph")
    (tmp_path / "v.bin").write_text("weights")
    sums = {name: layout.oci.sha256((tmp_path / name).read_bytes()) for name in ("v.xml", "v.bin")}
    weights = {"file": "v.bin", "sha256": sums["v.bin"]}
    raw = json.loads((tmp_path / MANIFEST).read_text())
    its = {"name": "v", "file": "v.xml", "sha256": sums["v.xml"], "format": "openvino", "weights": weights}
    (tmp_path / MANIFEST).write_text(json.dumps({**raw, "variants": [its]}))
    assert load(tmp_path).using("v").model.name == "v.xml"
    for name, good in (("v.xml", "graph"), ("v.bin", "weights")):
        (tmp_path / name).write_text(good + "!")
        with pytest.raises(PackageError, match=rf"{name}: expected sha256 {sums[name][:16]}"):
            load(tmp_path)
        load(tmp_path, only="reference")
        with pytest.raises(PackageError, match="expected sha256"):
            load(tmp_path, only="v")
        (tmp_path / name).unlink()
        with pytest.raises(PackageError, match=rf"{name}: expected variant v, got No such file"):
            load(tmp_path)
        (tmp_path / name).write_text(good)


def test_golden_pictures_of_a_variant_are_verified(tmp_path: Path) -> None:
    write_package(tmp_path)
    golden = golden_of(tmp_path, 0.5)
    add_variant(tmp_path, "int8", precision="int8", golden=golden)
    golden["pictures"][0]["objects"][0]["label"] = "wheel"
    raw = json.loads((tmp_path / MANIFEST).read_text())
    raw["variants"][0]["golden"] = golden
    (tmp_path / MANIFEST).write_text(json.dumps(raw))
    with pytest.raises(PackageError, match=r"variants\[0\].golden.pictures\[0\]: expected labels of .*wheel"):
        load(tmp_path)
    (tmp_path / golden["pictures"][0]["file"]).write_bytes(b"no picture")
    with pytest.raises(PackageError, match="expected sha256"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "reference"}, "expected another name than that of the artifact"),
        ({"format": "openvino"}, "expected NAME.xml with weights NAME.bin for openvino, got v.onnx and None"),
        ({"weights": {"file": "v.bin", "sha256": SHA}}, "weights: expected none for onnx, got v.bin"),
        (
            {
                "format": "openvino", "file": "v.xml", "runtimes": ["onnxruntime"],
                "weights": {"file": "v.bin", "sha256": SHA},
            },
            "runtimes: expected those that read openvino (openvino), got onnxruntime",
        ),
        (
            {"format": "openvino", "file": "v.xml", "weights": {"file": "w.bin", "sha256": SHA}},
            "got v.xml and w.bin",
        ),
        ({"precision": "int4"}, "int4"),
        ({"file": "../v.onnx"}, "expected text that"),
    ],
)  # fmt: skip
def test_a_variant_that_cannot_be_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(Variant, {"name": "v", "file": "v.onnx", "sha256": SHA, **fields}, "v")
    assert said in str(caught.value)


def test_two_variants_of_one_name_are_refused() -> None:
    its = {"name": "v", "file": "v.onnx", "sha256": SHA}
    with pytest.raises(ConfigError, match="expected each name once, got v again"):
        parse(Manifest, manifest(variants=[its, its]), "m")


def test_a_package_with_variants_is_packed_and_unpacked_whole(tmp_path: Path) -> None:
    folder = write_package(tmp_path / "p", version="1.0.0")
    add_variant(folder, "int8", precision="int8", tolerance=0.1)
    packed = layout.pack(folder, tmp_path / "layout")
    assert {f.title for f in packed.listing.files} >= {"model.onnx", "int8.onnx"}
    again = layout.unpack(tmp_path / "layout", tmp_path / "again")
    assert again.using("int8").model.read_bytes() == (folder / "int8.onnx").read_bytes()


def test_a_config_that_names_other_bytes_for_a_variant_is_refused(tmp_path: Path) -> None:
    folder = write_package(tmp_path / "p", version="1.0.0")
    add_variant(folder, "int8", precision="int8")
    packed = layout.pack(folder, tmp_path / "layout")
    raw = json.loads((tmp_path / "layout/blobs/sha256" / packed.listing.config.digest).read_bytes())
    for field, value in (("sha256", SHA), ("file", "gone.onnx")):
        variant = {**raw["manifest"]["variants"][0], field: value}
        wrong = {**raw, "manifest": {**raw["manifest"], "variants": [variant]}}
        content = layout.oci.canonical(wrong)
        config = layout.oci.Blob(layout.oci.sha256(content), len(content))
        with pytest.raises(PackageError) as caught:
            layout.oci.read_config(content, replace(packed.listing, config=config), "config")
        assert f"manifest.variants[0].{field}: expected" in str(caught.value)
