"""`bom.json`: a CycloneDX ML-BOM."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from referencing import Registry, Resource

import needs
from evidenced import CALIBRATION, built, record
from skerry.models import package as packages
from skerry.models.evidence.bom import bom

SCHEMA = needs.ROOT.parent / "shared" / "schemas" / "cyclonedx"
schemas = pytest.mark.skipif(not SCHEMA.is_dir(), reason=f"needs the schemas of CycloneDX in {SCHEMA}")
ALLOWED = {
    "": {"bomFormat", "specVersion", "serialNumber", "version", "metadata", "components", "dependencies"},
    "component": {
        "type", "bom-ref", "name", "version", "description", "licenses", "hashes", "modelCard", "properties",
        "purl", "data",
    },
    "modelCard": {"modelParameters", "quantitativeAnalysis", "considerations"},
    "modelParameters": {"task", "datasets", "inputs", "outputs"},
    "performanceMetric": {"type", "value", "slice"},
    "considerations": {"useCases", "technicalLimitations"},
    "data": {"type", "name", "description"},
}  # fmt: skip
"""Of what CycloneDX 1.6 documents, the keys that are used; it allows no others."""


@pytest.fixture
def value(tmp_path: Path) -> dict[str, Any]:
    folder, made = built(tmp_path / "tiny", budget={"latency_ms": 12.5, "memory_mb": 64})
    found: dict[str, Any] = json.loads(bom(packages.load(folder), made))
    return found


def test_it_names_the_model_its_files_its_data_and_its_tools_by_hash(value: dict[str, Any]) -> None:
    model = value["metadata"]["component"]
    assert (model["type"], model["name"], model["version"]) == ("machine-learning-model", "tiny", "1.0.0")
    assert model["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    by_ref = {each["bom-ref"]: each for each in value["components"]}
    assert by_ref["file:model.onnx"]["hashes"] == model["hashes"]
    assert by_ref["data:calibration"]["hashes"] == [{"alg": "SHA-256", "content": CALIBRATION}]
    tools = {each["name"]: each for each in value["metadata"]["tools"]["components"]}
    assert tools["onnxruntime"]["purl"] == "pkg:pypi/onnxruntime@1.31.1"


def test_the_model_card_has_the_figures_of_every_form_and_what_was_refused(value: dict[str, Any]) -> None:
    card = value["metadata"]["component"]["modelCard"]
    assert card["modelParameters"]["datasets"] == [{"ref": "data:calibration"}, {"ref": "data:evaluation"}]
    metrics = card["quantitativeAnalysis"]["performanceMetrics"]
    where = "onnx-int8 on onnxruntime 1.31.1, avx512_vnni, 200 pictures"
    assert {"type": "mAP50-95", "value": "0.9123", "slice": where} in metrics
    assert {"type": "false negatives", "value": "7", "slice": where} in metrics
    assert any("refused: map fell" in text for text in card["considerations"]["technicalLimitations"])
    properties = {p["name"]: p["value"] for p in value["metadata"]["component"]["properties"]}
    assert properties["skerry:budget:latency_ms"] == "12.5"


def test_every_reference_leads_somewhere_and_every_name_is_there_once(value: dict[str, Any]) -> None:
    parts = [value["metadata"]["component"], *value["components"], *value["metadata"]["tools"]["components"]]
    refs = [each["bom-ref"] for each in parts]
    assert len(refs) == len(set(refs))
    used = {d["ref"] for d in value["dependencies"]} | {
        r for d in value["dependencies"] for r in d.get("dependsOn", ())
    }
    used |= {d["ref"] for d in parts[0]["modelCard"]["modelParameters"]["datasets"]}
    assert used <= set(refs)


def test_the_same_record_gives_the_same_bytes_and_another_one_another_serial_number(tmp_path: Path) -> None:
    folder, made = built(tmp_path / "tiny")
    package = packages.load(folder)
    assert bom(package, made) == bom(package, record())
    other = msgspec.structs.replace(made, licence="MIT")
    one, two = json.loads(bom(package, made)), json.loads(bom(package, other))
    assert one["serialNumber"] != two["serialNumber"]
    assert re.fullmatch(
        r"urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", one["serialNumber"]
    )
    assert "timestamp" not in one["metadata"]


def test_a_licence_outside_the_list_goes_by_its_name(tmp_path: Path) -> None:
    folder, made = built(tmp_path / "tiny", licence="as the vendor says")
    value = json.loads(bom(packages.load(folder), made))
    assert value["metadata"]["component"]["licenses"] == [{"license": {"name": "as the vendor says"}}]


def test_it_keeps_to_the_keys_that_the_standard_documents(value: dict[str, Any]) -> None:
    model = value["metadata"]["component"]
    card = model["modelCard"]
    assert value["specVersion"] == "1.6"
    assert set(value) <= ALLOWED[""]
    assert set(value["metadata"]) <= {"tools", "component"}
    for each in [model, *value["components"], *value["metadata"]["tools"]["components"]]:
        assert set(each) <= ALLOWED["component"]
        assert each["type"] in {"machine-learning-model", "file", "data", "library", "platform"}
        assert all(set(p) == {"name", "value"} for p in each.get("properties", ()))
        assert all(set(d) <= ALLOWED["data"] and d["type"] == "dataset" for d in each.get("data", ()))
    assert set(card) <= ALLOWED["modelCard"]
    assert set(card["modelParameters"]) <= ALLOWED["modelParameters"]
    assert set(card["considerations"]) <= ALLOWED["considerations"]
    for metric in card["quantitativeAnalysis"]["performanceMetrics"]:
        assert set(metric) <= ALLOWED["performanceMetric"]
        assert all(isinstance(text, str) for text in metric.values())


@schemas
def test_it_is_valid_by_the_official_schema(value: dict[str, Any]) -> None:
    documents = {path.name: json.loads(path.read_bytes()) for path in SCHEMA.glob("*.schema.json")}
    registry: Registry[Any] = Registry().with_resources(
        (address, Resource.from_contents(document))
        for name, document in documents.items()
        for address in {f"http://cyclonedx.org/schema/{name}", document["$id"]}
    )
    jsonschema.Draft7Validator(documents["bom-1.6.schema.json"], registry=registry).validate(value)
