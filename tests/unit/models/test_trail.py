"""What a package and a log prove together, link by link."""

import msgspec

from evidenced import record, sha
from model_folders import weights
from skerry.audit import Entry, Head, Stamp, seal
from skerry.models import trail
from skerry.models.building.record import ArtifactRecord, BuildRecord
from skerry.models.evidence.provenance import provenance
from skerry.models.slots import Slots
from skerry.models.trail import Evidence, Link

STAMP = Stamp("2026-01-01T00:00:00.000Z", "boot", 1)
ONE, TWO = sha("one"), sha("two")
FILES = {"model.onnx": sha(weights("1.0.0")), "labels.txt": sha("labels")}


def evidence(made: BuildRecord, files: dict[str, str] = FILES) -> Evidence:
    return Evidence(ONE, "tiny@1.0.0", files, provenance(made, FILES))


def links(of: Evidence) -> dict[str, Link]:
    return {each.name: each for each in trail.of_package(of)}


def told(*said: tuple[str, dict[str, str | int]], start: int = 0) -> list[Entry]:
    head, entries = Head(start), []
    for what, fields in said:
        entry, _ = seal(head, STAMP, what, dict(fields))
        entries.append(entry)
        head = entry.head
    return entries


def test_a_whole_package_has_all_its_links() -> None:
    assert {each.state for each in trail.of_package(evidence(record()))} == {"found"}


def test_a_calibration_set_that_went_into_no_step_is_wrong() -> None:
    made = record()
    idle = msgspec.structs.replace(made, steps=(made.steps[0],))
    assert links(evidence(idle))["calibration"].state == "wrong"


def test_a_calibration_set_whose_forms_were_all_refused_is_no_fault() -> None:
    made = record()
    refused = msgspec.structs.replace(made.artifacts[0], status="refused", files=())
    plain = msgspec.structs.replace(made, steps=made.steps[:1], artifacts=(refused,))
    assert links(evidence(plain))["calibration"].state == "found"


def test_int8_without_a_calibration_set_lacks_its_first_link() -> None:
    made = msgspec.structs.replace(record(), data=())
    assert links(evidence(made))["calibration"].state == "missing"
    assert "onnx-int8" in links(evidence(made))["calibration"].text


def test_what_was_not_quantised_needs_no_calibration_set() -> None:
    made = record()
    whole = ArtifactRecord(name="onnx-fp32", format="onnx", precision="fp32", status="reference")
    plain = msgspec.structs.replace(made, data=(), steps=made.steps[:1], artifacts=(whole,))
    assert links(evidence(plain))["calibration"].state == "found"


def test_files_that_the_provenance_is_not_about_are_wrong() -> None:
    other = evidence(record(), {**FILES, "model.onnx": sha("other")})
    assert links(other)["build"].state == "wrong"


def test_a_form_that_no_step_has_made_is_wrong() -> None:
    made = record()
    told = msgspec.structs.replace(made.steps[1], outputs=())
    found = links(evidence(msgspec.structs.replace(made, steps=(made.steps[0], told))))["build"]
    assert found == Link("build", "wrong", "onnx-int8: expected a step that has made model.onnx")


def test_a_build_of_no_step_is_missing() -> None:
    made = msgspec.structs.replace(record(), steps=(), artifacts=(), data=())
    assert links(evidence(made))["build"].state == "missing"


def test_metadata_that_was_accepted_after_the_package_came_signs_nothing() -> None:
    entries = told(("fetched", {"digest": ONE}), ("refreshed", {"root": 1, "targets": 4}))
    assert next(trail.of_log(entries, ONE)).state == "missing"
    entries = told(("refreshed", {"root": 1, "targets": 4}), ("fetched", {"digest": ONE}))
    assert next(trail.of_log(entries, ONE)).state == "found"


def test_metadata_without_a_version_of_targets_is_missing() -> None:
    entries = told(("refreshed", {"root": 1}), ("fetched", {"digest": ONE}))
    assert next(trail.of_log(entries, ONE)).state == "missing"


def test_what_happened_in_another_slot_does_not_count() -> None:
    entries = told(
        ("fetched", {"digest": ONE}),
        ("step", {"digest": ONE, "slot": "gate", "step": "proved"}),
        ("confirmed", {"digest": ONE, "slot": "gate"}),
    )
    there = {each.name: each.state for each in trail.of_log(entries, ONE, "gate", Slots(current=ONE))}
    assert (there["activation"], there["confirmed"], there["slot"]) == ("found",) * 3
    there = {each.name: each.state for each in trail.of_log(entries, ONE, "belt", Slots(current=ONE))}
    assert (there["activation"], there["confirmed"], there["slot"]) == ("missing",) * 3


def test_what_was_dropped_is_named_as_the_reason() -> None:
    entries = told(("scrubbed", {}), start=499)
    assert "the log begins with entry 500" in next(trail.of_log(entries, ONE)).text


def test_a_slot_goes_back_to_what_it_had() -> None:
    entries = told(
        ("confirmed", {"digest": ONE, "slot": "gate"}),
        ("confirmed", {"digest": TWO, "slot": "gate"}),
        ("fell_back", {"digest": TWO, "slot": "gate"}),
    )
    *_, slot = trail.of_log(entries, ONE, "gate", Slots(current=ONE))
    assert slot.state == "found"
    *_, slot = trail.of_log(entries, TWO, "gate", Slots(current=TWO))
    assert slot.state == "wrong"
    *_, slot = trail.of_log(entries, TWO, "gate", Slots(current=ONE))
    assert slot == Link("slot", "wrong", f"expected {TWO[:16]} as current, got {ONE[:16]}")
