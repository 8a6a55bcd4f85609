"""What an attestation says follows from what was measured, and is about one package and one class."""

import hashlib

import pytest
from msgspec.structs import asdict, replace

from attested import DIGEST, GATEWAY, attestation, changed, figures, measured
from skerry.deploy.devices import DEVICES
from skerry.errors import PackageError
from skerry.models.benching import statement
from skerry.models.benching.statement import encode, judge, objections, read, shortfalls, summary, verdict_of
from skerry.trust.packages import Attested

BUDGET = DEVICES[GATEWAY].budget
LATE = statement.latency([10.0] * 900 + [100.0] * 100)


def judged(**said: object) -> dict[str, str]:
    return {each.figure: each.verdict for each in judge(figures(**said), BUDGET)}


def test_a_budget_is_met_when_every_figure_that_is_known_keeps_it() -> None:
    found = judge(figures(), BUDGET)
    assert [each.figure for each in found] == list(asdict(BUDGET))
    assert judged() == dict.fromkeys(("p95_ms", "frames_per_s", "memory_mib", "start_s"), "met") | {
        "image_mb": "not measured", "power_w": "not measured",
    }  # fmt: skip
    assert verdict_of(found) == "met"


@pytest.mark.parametrize(
    ("said", "figure"),
    [
        ({"frame_to_event_ms": LATE}, "p95_ms"),
        ({"frames_per_s": 29.9}, "frames_per_s"),
        ({"memory_mib": 513}, "memory_mib"),
        ({"start_s": 15.1}, "start_s"),
        ({"image_mb": 301}, "image_mb"),
        ({"power_w": 25.1}, "power_w"),
    ],
)
def test_one_figure_that_misses_its_budget_misses_it_all(said: dict[str, object], figure: str) -> None:
    assert judged(**said)[figure] == "missed"
    assert verdict_of(judge(figures(**said), BUDGET)) == "missed"


def test_a_latency_is_judged_at_its_upper_bound() -> None:
    near = statement.latency([10.0] * 951 + [100.0] * 49)  # p95 is 10, its bound is not
    assert (near.p95.value, near.p95.upper) == (10.0, 100.0)
    assert judged(frame_to_event_ms=near)["p95_ms"] == "missed"


def test_too_few_answers_prove_nothing() -> None:
    assert judged(frame_to_event_ms=statement.latency([10.0] * 50))["p95_ms"] == "missed"
    assert judged(frame_to_event_ms=statement.latency([]))["p95_ms"] == "missed"


def test_frames_that_were_never_answered_count_as_late_ones() -> None:
    assert judged(frame_to_event_ms=statement.latency([10.0] * 990, 10))["p95_ms"] == "met"
    assert judged(frame_to_event_ms=statement.latency([10.0] * 900, 100))["p95_ms"] == "missed"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"seconds": 599.0}, "seconds: expected 600"),
        ({"scenario": "single-stream", "cameras": 1, "fps": None}, "scenario: expected multi-stream"),
        ({"cameras": 1}, "load: expected 2 cameras x 15 frames/s, got 1 x 15"),
        ({"fps": 10.0}, "load: expected 2 cameras"),
        ({"figures": figures(offered_frames_per_s=28.0)}, "load: expected cameras that give 30"),
        ({"environment": replace(measured().environment, architecture="arm64")}, "architecture"),
        ({"environment": replace(measured().environment, cores=8)}, "cores: expected at most 4, got 8"),
    ],
)
def test_what_is_not_the_class_s_load_on_such_a_machine_is_no_attestation(
    said: dict[str, object], reason: str
) -> None:
    (found,) = shortfalls(measured(**said), DEVICES[GATEWAY])
    assert reason in found
    assert shortfalls(measured(), DEVICES[GATEWAY]) == ()


def test_a_statement_is_in_toto_s_and_has_one_form() -> None:
    made = attestation()
    raw = encode(made)
    assert raw.startswith(b'{"_type":"https://in-toto.io/Statement/v1","predicate":')
    assert read(raw, "a.json") == made
    assert encode(read(raw, "a.json")) == raw
    assert (made.subject[0].name, made.digest) == ("parts@1.0.0", DIGEST)
    assert summary(made, raw) == Attested(
        device_class=GATEWAY,
        statement=f"sha256:{hashlib.sha256(raw).hexdigest()}",
        verdict="met",
        p95_us=19_660,
        memory_mib=130,
    )


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("predicate.verdict", "met", "$.predicate.verdict"),
        ("predicate.figures.memory_mib", 100, "$.predicate.verdict"),
        ("predicate.judged.2.verdict", "met", "$.predicate.judged"),
        ("predicate.device.budget.memory_mib", 900, "$.predicate.verdict"),
        ("predicate.seconds", 30.0, "$.predicate.shortfalls"),
        ("predicate.environment.cores", 64, "$.predicate.shortfalls"),
        ("predicateType", "https://slsa.dev/provenance/v1", "$.predicateType"),
        ("predicate.scenario", "offline", "$.predicate.scenario"),
        ("subject", [], "$.subject"),
    ],
)
def test_a_statement_that_does_not_follow_from_its_figures_is_none(
    path: str, value: object, reason: str
) -> None:
    made = attestation(figures=figures(memory_mib=600))
    assert made.predicate.verdict == "missed"
    with pytest.raises(PackageError) as caught:
        read(changed(made, path, value), "a.json")
    assert reason in str(caught.value)


def test_what_is_too_long_or_no_json_is_no_statement() -> None:
    with pytest.raises(PackageError, match="expected at most 65536 bytes"):
        read(b" " * (statement.MOST_BYTES + 1), "a.json")
    with pytest.raises(PackageError, match="expected JSON"):
        read(b"met", "a.json")


def test_a_statement_is_signed_with_its_own_package_and_class_only() -> None:
    made = attestation()
    known = dict(DEVICES)
    assert objections(made, digest=DIGEST, classes=(), known=known) == ()
    assert objections(made, digest=DIGEST, classes=(GATEWAY, "jetson-8gb"), known=known) == ()
    other = f"sha256:{8:064x}"
    (reason,) = objections(made, digest=other, classes=(), known=known)
    assert "subject: expected sha256:" in reason
    (reason,) = objections(made, digest=DIGEST, classes=("jetson-8gb",), known=known)
    assert reason.startswith("device_class: expected one that the package is for (jetson-8gb)")


def test_a_statement_from_before_the_budget_was_changed_is_to_be_made_again() -> None:
    its = DEVICES[GATEWAY]
    loose = replace(its, budget=replace(its.budget, p95_ms=500.0))
    (reason,) = objections(attestation(device=loose), digest=DIGEST, classes=(), known=dict(DEVICES))
    assert reason.startswith("device: expected class amd64-gateway as it is now")
    own = attestation(device_class="my-board", device=loose)
    assert objections(own, digest=DIGEST, classes=(), known=dict(DEVICES)) == ()
