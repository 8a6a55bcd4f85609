"""What a device's policy asks of a package, and that what was measured is signed with it."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from publisher import NOW, Publisher, Refused, linked, package
from skerry.errors import ConfigError
from skerry.trust.device import Trust
from skerry.trust.packages import (
    MOST_ATTESTATIONS,
    Attested,
    Policy,
    TrustedPackage,
    choose,
    newest_first,
    permit,
)
from skerry.trust.refusals import Altered, Malformed, Unattested, WrongSoftware

ASKS = Policy(require_attestation=True)


def attested(device_class: str = "jetson", verdict: str = "met", n: int = 1) -> Attested:
    return Attested(
        device_class=device_class,
        statement=f"sha256:{n:064x}",
        verdict=verdict,  # type: ignore[arg-type]  # also what is no verdict
        p95_us=61_000,
        memory_mib=200,
    )


def measured(version: str, *attestations: Attested, epoch: int = 0) -> TrustedPackage:
    return replace(package(version, epoch=epoch), attestations=attestations)


@pytest.mark.parametrize(
    ("there", "device_class", "reason"),
    [
        ((), "jetson", "an attestation for class jetson, got none"),
        ((attested("x86"),), "jetson", "an attestation for class jetson, got x86"),
        ((attested("jetson", "missed"),), "jetson", "budget of class jetson to be met, got missed"),
        ((attested("jetson"),), "", "this device's class, got no class"),
    ],
)
def test_a_device_that_asks_for_an_attestation_refuses_a_package_without_one(
    there: tuple[Attested, ...], device_class: str, reason: str
) -> None:
    with pytest.raises(Unattested, match=reason):
        permit(measured("1.0.0", *there), device_class, ASKS)
    permit(measured("1.0.0", *there), device_class, Policy())


def test_a_package_that_met_the_budget_of_the_class_is_let_through() -> None:
    permit(measured("1.0.0", attested("x86", "missed"), attested("jetson", n=2)), "jetson", ASKS)


def test_an_older_package_is_taken_where_the_newest_is_not_attested() -> None:
    old, new = measured("1.0.0", attested()), measured("1.1.0")
    assert choose([old, new], "parts", "jetson") == new
    assert choose([old, new], "parts", "jetson", policy=ASKS) == old
    with pytest.raises(Unattested, match=r"parts@1\.1\.0"):
        choose([old, new], "parts", "jetson", "1.1.0", ASKS)


def test_an_attested_package_of_an_epoch_that_is_over_is_not_fallen_back_to() -> None:
    with pytest.raises(Unattested, match=r"parts@2\.0\.0"):
        choose([measured("1.0.0", attested()), measured("2.0.0", epoch=1)], "parts", "jetson", policy=ASKS)


OFFERED = st.lists(
    st.builds(
        lambda version, epoch, verdicts, classes: replace(
            package(f"1.{version}.0", epoch=epoch, classes=classes),
            attestations=tuple(attested(c, v) for c, v in verdicts.items()),
        ),
        st.integers(0, 3),
        st.integers(0, 2),
        st.dictionaries(st.sampled_from(["jetson", "x86"]), st.sampled_from(["met", "missed"])),
        st.sets(st.sampled_from(["jetson", "x86"])).map(sorted),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda package: package.digest,
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(OFFERED, st.sampled_from(["jetson", "x86", "hailo", ""]), st.booleans())
def test_a_policy_never_lets_a_device_take_what_it_would_not_take_without_one(
    offered: list[TrustedPackage], device_class: str, asks: bool
) -> None:
    try:
        taken = choose(offered, "parts", device_class, policy=Policy(require_attestation=asks))
    except (Unattested, WrongSoftware):
        return
    without = choose(offered, "parts", device_class)
    assert taken.security_epoch == without.security_epoch
    assert newest_first([taken, without])[0] == without
    assert not taken.classes or device_class in taken.classes
    if asks:
        mine = taken.attested(device_class)
        assert mine is not None
        assert mine.verdict == "met"
    else:
        assert taken == without


def test_what_was_measured_is_signed_with_the_package_and_comes_to_the_device(
    publisher: Publisher, trust: Trust
) -> None:
    listed = publisher.repository.attest(package("1.0.0").digest, [attested()], publisher.signers, NOW)
    assert trust.refresh(publisher.source, NOW, clock_trusted=True) == (listed,)
    permit(listed, "jetson", ASKS)
    again = publisher.repository.attest(
        listed.digest, [attested("x86"), attested("jetson", "missed", 2)], publisher.signers, NOW
    )
    assert again.attestations == (attested("jetson", "missed", 2), attested("x86"))
    assert trust.refresh(publisher.source, NOW, clock_trusted=True) == (again,)


def test_a_package_that_nobody_measured_is_signed_as_it_was_before(publisher: Publisher) -> None:
    targets = json.loads(publisher.file("2.targets.json"))["signed"]["targets"]
    (target,) = targets.values()
    assert sorted(target["custom"]) == ["classes", "name", "security_epoch", "version"]


def two_of_a_class(signed: dict) -> None:
    (target,) = signed["targets"].values()
    (first,) = target["custom"]["attestations"]
    target["custom"]["attestations"] = [first, first | {"verdict": "met"}]


def test_two_attestations_for_one_class_are_no_metadata(publisher: Publisher, refused: Refused) -> None:
    publisher.repository.attest(package("1.0.0").digest, [attested(verdict="missed")], publisher.signers, NOW)
    files = linked(publisher.stolen("targets", two_of_a_class), publisher, from_role="targets")
    assert "attestations: expected one a class" in str(refused(Malformed, files))


def test_a_verdict_that_was_turned_after_signing_is_refused(publisher: Publisher, refused: Refused) -> None:
    publisher.repository.attest(package("1.0.0").digest, [attested(verdict="missed")], publisher.signers, NOW)
    name = f"{publisher.version('targets')}.targets.json"
    content = publisher.file(name)
    assert b"missed" in content
    refused(Altered, publisher.files | {name: content.replace(b'"missed"', b'"met"')})


def test_more_attestations_than_fit_are_not_signed(publisher: Publisher, tmp_path: Path) -> None:
    many = [attested(f"class-{n}") for n in range(MOST_ATTESTATIONS + 1)]
    with pytest.raises(ConfigError, match=f"at most {MOST_ATTESTATIONS} classes"):
        publisher.repository.attest(package("1.0.0").digest, many, publisher.signers, NOW)
    listed = publisher.repository.attest(package("1.0.0").digest, many[1:], publisher.signers, NOW)
    device = Trust(tmp_path / "new", publisher.anchor)
    assert device.refresh(publisher.source, NOW, clock_trusted=True) == (listed,)


def test_a_package_that_is_not_listed_gets_no_attestation(publisher: Publisher) -> None:
    with pytest.raises(ConfigError, match="expected one of the packages listed"):
        publisher.repository.attest(f"sha256:{'0' * 64}", [attested()], publisher.signers, NOW)
