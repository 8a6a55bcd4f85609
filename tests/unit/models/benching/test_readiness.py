"""The checklist says what a package has; the matrix says where it runs."""

import re
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from attested import DIGEST, GATEWAY, attestation
from evidenced import built, sha
from skerry.deploy.devices import DEVICES
from skerry.models import package as packages
from skerry.models.benching import readiness
from skerry.models.benching.readiness import Facts, Signed, checklist, matrix, page, ready
from skerry.models.benching.statement import encode, summary
from skerry.models.evidence import files
from skerry.models.manifest import (
    Baseline,
    Budget,
    Delta,
    File,
    Golden,
    GoldenPicture,
    Manifest,
    Sighting,
    SignalBaseline,
    Variant,
)

MADE = attestation()
MET = summary(MADE, encode(MADE))
SIGNED = Signed("1 of 1 keys", good=True, attestations=(MET,))
BASELINE = Baseline(
    every_s=1.0, window=30, in_a_row=3, windows=40,
    signals={"score": SignalBaseline(counts=(1,), furthest=0.1, windows=40)},
)  # fmt: skip
GOLDEN = Golden(
    pictures=(
        GoldenPicture(
            file="a.png", sha256=sha("a"), objects=(Sighting(label="good", score=0.9, box=(0, 0, 1, 1)),)
        ),
    )
)


@pytest.fixture
def whole(tmp_path: Path) -> Facts:
    """Of a package that has everything."""
    folder, record = built(tmp_path / "package", budget={"latency_ms": 20.0, "memory_mb": 100})
    files.add(folder, record)
    package = packages.load(folder)
    there = {p.name: p for p in folder.iterdir()}
    return Facts(
        title=package.title,
        digest=DIGEST,
        manifest=msgspec.structs.replace(package.manifest, golden=GOLDEN, baseline=BASELINE),
        files={name: packages.digest(path) for name, path in there.items()},
        documents={name: there[name].read_bytes() for name in readiness.DOCUMENTS},
        signed=SIGNED,
        statements={MET.statement: MADE.predicate},
    )


def states(facts: Facts, *classes: str) -> dict[str, str]:
    return {check.name: check.state for check in checklist(facts, classes or (GATEWAY,))}


def found(facts: Facts, name: str, *classes: str) -> str:
    return next(check.found for check in checklist(facts, classes or (GATEWAY,)) if check.name == name)


def without(whole: Facts, **said: object) -> Facts:
    return replace(whole, manifest=msgspec.structs.replace(whole.manifest, **said))


def test_a_package_that_has_everything_is_ready(whole: Facts) -> None:
    checks = checklist(whole, (GATEWAY,))
    assert {check.name: check.found for check in checks if check.state != "yes"} == {}
    assert ready(checks)
    assert all(check.why for check in checks)
    assert found(whole, "evaluation") == "1 of 1 forms, 0.9100 to 0.9123, greatest loss 0.0065"


def test_every_thing_that_a_package_lacks_is_told_and_keeps_it_back(whole: Facts) -> None:
    bare: Manifest = msgspec.structs.replace(
        whole.manifest, golden=None, baseline=None, budget=Budget(), licence=""
    )
    naked = Facts(title="tiny@1.0.0", digest=DIGEST, manifest=bare, files={})
    assert set(states(naked).values()) == {"no"}
    assert not ready(checklist(naked, (GATEWAY,)))


@pytest.mark.parametrize("name", readiness.DOCUMENTS)
def test_a_document_that_is_not_there_or_is_something_else_is_missed(whole: Facts, name: str) -> None:
    gone = {k: v for k, v in whole.documents.items() if k != name}
    assert not ready(checklist(replace(whole, documents=gone), (GATEWAY,)))
    broken = {**whole.documents, name: b"\xff[" * 9}
    assert not ready(checklist(replace(whole, documents=broken), (GATEWAY,)))


def test_provenance_that_is_about_other_files_is_no_provenance_of_these(whole: Facts) -> None:
    changed = replace(whole, files={**whole.files, "model.onnx": sha("another")})
    assert states(changed)["provenance"] == "partly"
    assert "model.onnx: expected sha256" in found(changed, "provenance")


def test_figures_of_another_file_are_not_those_of_the_model(whole: Facts) -> None:
    artifact = msgspec.structs.replace(whole.manifest.artifact, sha256=sha("another"))
    assert states(without(whole, artifact=artifact))["evaluation"] == "no"


def test_a_form_that_nobody_measured_is_named(whole: Facts) -> None:
    delta = Delta(runtime="onnxruntime", isa="avx2", metric="map", value=0.8, delta=-0.1)
    blind = Variant(name="onnx-fp16", file="half.onnx", sha256=sha("half"))
    seen = Variant(name="onnx-int8", file="int8.onnx", sha256=sha("int8"), measured=(delta,))
    some = without(whole, variants=(blind, seen))
    assert states(some)["evaluation"] == "partly"
    assert found(some, "evaluation").endswith("greatest loss 0.1000; none of onnx-fp16")


def test_golden_pictures_with_nothing_in_them_are_half_of_it(whole: Facts) -> None:
    empty = msgspec.structs.replace(GOLDEN.pictures[0], objects=())
    assert states(without(whole, golden=Golden(pictures=(empty,))))["golden pictures"] == "partly"


def test_an_attestation_counts_for_its_class_when_it_is_met_whole_and_there(whole: Facts) -> None:
    assert found(whole, "attestations", GATEWAY, "jetson-8gb") == "amd64-gateway: met; jetson-8gb: none"
    assert states(whole, GATEWAY, "jetson-8gb")["attestations"] == "partly"
    assert states(replace(whole, statements={}))["attestations"] == "no"
    short = attestation(seconds=30.0)
    assert (
        states(replace(whole, statements={MET.statement: short.predicate}))["attestations"],
        found(replace(whole, statements={MET.statement: short.predicate}), "attestations"),
    ) == ("no", "amd64-gateway: met, but seconds: expected 600 or more, got 30")
    missed = replace(SIGNED, attestations=(msgspec.structs.replace(MET, verdict="missed"),))
    assert found(replace(whole, signed=missed), "attestations") == "amd64-gateway: budget missed"


def test_the_matrix_says_what_runs_where_and_why_not(whole: Facts) -> None:
    npu = Variant(
        name="openvino-int8", file="a.xml", sha256=sha("xml"), format="openvino",
        weights=File(file="a.bin", sha256=sha("bin")),
    )  # fmt: skip
    both = without(whole, variants=(npu,))
    only = replace(both, signed=replace(SIGNED, classes=(GATEWAY, "amd64-intel")))
    rows = {(p.device_class, p.runtime): p for p in matrix(only, DEVICES)}
    assert len(rows) == 2 * len(DEVICES)
    gateway = rows[GATEWAY, "onnxruntime"]
    assert (gateway.forms, gateway.devices, gateway.attested, gateway.budget) == (
        ("reference",), ("cpu",), "yes", "met",
    )  # fmt: skip
    assert rows[GATEWAY, "openvino"].attested == "other runtime"
    intel = rows["amd64-intel", "openvino"]
    assert (intel.forms, intel.devices) == (("reference", "openvino-int8"), ("cpu", "gpu", "npu"))
    assert rows["jetson-8gb", "onnxruntime"].obstacle == "not for this class"
    assert rows["jetson-8gb", "onnxruntime"].devices == ("cpu", "cuda", "tensorrt")


def test_a_package_s_own_words_stay_in_their_cell(whole: Facts) -> None:
    rude = without(whole, licence="MIT | **yes** |\n| <img src=x> ")
    text = page({"tiny": checklist(rude, (GATEWAY,))}, matrix(rude, DEVICES), {"tiny": DIGEST})
    row = next(line for line in text.splitlines() if line.startswith("| licence | yes | MIT"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 5
    assert "<img" not in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)
