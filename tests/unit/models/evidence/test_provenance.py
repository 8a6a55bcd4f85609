"""`provenance.json`: how each file of a package came to be."""

import hashlib
import json
from pathlib import Path

import msgspec
import pytest

from evidenced import CALIBRATION, built, record, sha
from skerry.errors import PackageError
from skerry.models import layout
from skerry.models.building.record import Content, Step
from skerry.models.evidence.files import add
from skerry.models.evidence.provenance import provenance
from skerry.models.provenance import PROVENANCE, loose_ends, misfits, read

FILES = {"model.onnx": sha("a"), "labels.txt": sha("b")}


def test_it_is_an_in_toto_statement_with_the_predicate_of_slsa() -> None:
    value = json.loads(provenance(record(), FILES))
    assert value["_type"] == "https://in-toto.io/Statement/v1"
    assert value["predicateType"] == "https://slsa.dev/provenance/v1"
    assert value["subject"] == [{"name": n, "digest": {"sha256": s}} for n, s in sorted(FILES.items())]
    assert set(value["predicate"]) == {"buildDefinition", "runDetails"}
    definition = value["predicate"]["buildDefinition"]
    assert set(definition) == {
        "buildType", "externalParameters", "internalParameters", "resolvedDependencies"
    }  # fmt: skip
    assert all("uri" in d or "digest" in d for d in definition["resolvedDependencies"])
    assert value["predicate"]["runDetails"]["builder"]["id"].startswith("urn:")


def test_the_same_record_and_files_give_the_same_bytes_and_no_time() -> None:
    content = provenance(record(), FILES)
    assert content == provenance(record(), dict(reversed(FILES.items())))
    assert b"startedOn" not in content
    text = json.dumps(json.loads(content), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert content == text.encode() + b"\n"
    timed = provenance(record(), FILES, metadata={"startedOn": "2026-01-01T00:00:00Z"})
    assert b'"startedOn":"2026-01-01T00:00:00Z"' in timed


def test_what_was_written_is_read_again() -> None:
    statement = read(provenance(record(), FILES), "it")
    calibration = statement.dependency("calibration")
    assert calibration is not None
    assert calibration.sha256 == CALIBRATION
    assert calibration.annotations["pictures"] == 64
    assert [s.name for s in statement.definition.internal_parameters.steps] == ["export", "onnx-int8"]
    assert [a.name for a in statement.definition.internal_parameters.artifacts] == ["onnx-int8"]
    assert statement.dependency("nothing") is None


@pytest.mark.parametrize(
    "change", [b"", b"[]", b"{}", b"not json", b'{"_type": 3}'], ids=["empty", "list", "none", "text", "type"]
)
def test_what_is_no_statement_is_refused(change: bytes) -> None:
    with pytest.raises(PackageError, match="expected the provenance of a package"):
        read(change, "it")


@pytest.mark.parametrize(
    "name", ["in-toto.io/Statement/v1", "slsa.dev/provenance/v1", "urn:skerry:model-build:v1"]
)
def test_a_statement_of_another_kind_is_refused(name: str) -> None:
    content = provenance(record(), FILES).replace(name.encode(), name.replace("v1", "v9").encode())
    with pytest.raises(PackageError, match=f"expected .*{name}, got"):
        read(content, "it")


def test_evidence_covers_every_other_file_of_the_package(tmp_path: Path) -> None:
    folder, made = built(tmp_path / "tiny")
    add(folder, made)
    add(folder, made)
    there = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}
    assert set(there) > {"bom.json", "build.json", "MODEL_CARD.md", "model.onnx"}
    statement = read((folder / PROVENANCE).read_bytes(), "it")
    assert misfits(statement, there) == []
    assert {s.name for s in statement.subject} == there.keys() - {PROVENANCE}


def test_files_that_are_not_those_of_the_build_are_named() -> None:
    statement = read(provenance(record(), FILES), "it")
    assert misfits(statement, {**FILES, "model.onnx": sha("c")})[0].startswith("model.onnx: expected sha256")
    assert misfits(statement, {**FILES, "more.txt": sha("c")}) == ["provenance: expected it to name more.txt"]
    assert misfits(statement, {"model.onnx": sha("a")}) == [
        "provenance: expected labels.txt, got no such file"
    ]


def test_a_package_with_evidence_has_the_same_digest_every_time(tmp_path: Path) -> None:
    digests = set()
    for n in range(2):
        folder, made = built(tmp_path / str(n) / "tiny")
        add(folder, made)
        add(folder, made)
        digests.add(layout.pack(folder, tmp_path / str(n) / "layout").listing.digest)
    assert len(digests) == 1


def test_a_file_that_no_step_has_made_is_a_loose_end() -> None:
    whole = record()
    assert loose_ends(read(provenance(whole, FILES), "it")) == []
    without = msgspec.structs.replace(whole, steps=whole.steps[:1])
    assert loose_ends(read(provenance(without, FILES), "it")) == [
        "onnx-int8: expected a step that has made model.onnx"
    ]
    stray = Step(name="prune", tool="x", version="1", inputs=(Content(name="other", sha256=sha("other")),))
    strayed = msgspec.structs.replace(whole, steps=(*whole.steps, stray))
    assert (
        "step prune: expected other to come from a step before it"
        in loose_ends(read(provenance(strayed, FILES), "it"))[0]
    )


def test_an_exported_graph_that_no_step_names_is_a_dependency() -> None:
    whole = record()
    silent = msgspec.structs.replace(
        whole, steps=(msgspec.structs.replace(whole.steps[0], outputs=()), whole.steps[1])
    )
    statement = read(provenance(silent, FILES), "it")
    assert statement.dependency("exported") is not None
    assert read(provenance(whole, FILES), "it").dependency("exported") is None
    assert loose_ends(statement) == []
