"""When credentials end, and when that is said."""

import base64
import datetime as dt
import threading
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from authority import Authority
from skerry.settings import TlsSettings
from skerry.uplink import settings as links
from skerry.uplink.expiry import Expiry, Source, Validity, Watch, level, sources, validity

DAY = 86_400.0
NOW = dt.datetime(2026, 11, 21, tzinfo=dt.UTC).timestamp()
KEY = ec.generate_private_key(ec.SECP256R1())
OTHERS = (ed25519.Ed25519PrivateKey.generate(), rsa.generate_private_key(65537, 2048))


def certificate(
    begins: dt.datetime, ends: dt.datetime, *, key: Any = KEY, name: str = "gate", names: int = 0
) -> bytes:
    """A certificate as PEM."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
    )
    if names:
        hosts = [x509.DNSName(f"host-{n}.example.com") for n in range(names)]
        builder = builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
    hashed = None if isinstance(key, ed25519.Ed25519PrivateKey) else SHA256()
    return builder.sign(key, hashed).public_bytes(Encoding.PEM)


def lasting(days: float, life: float = 365) -> bytes:
    end = dt.datetime.fromtimestamp(NOW, dt.UTC) + dt.timedelta(days=days)
    return certificate(end - dt.timedelta(days=life), end)


def token(claims: str) -> bytes:
    parts = (base64.urlsafe_b64encode(part.encode()).rstrip(b"=") for part in ('{"alg":"none"}', claims, "x"))
    return b".".join(parts)


class Told:
    """What a host is told."""

    def __init__(self) -> None:
        self.faults: dict[str, str] = {}
        self.gauges: dict[str, float] = {}
        self.telemetry = self

    def fault(self, about: str, reason: str) -> None:
        self.faults[about] = reason

    def clear(self, about: str) -> None:
        self.faults.pop(about, None)

    def gauge(self, name: str, value: float, **labels: str) -> None:
        self.gauges[f"{name} {labels['file']}"] = value


MOMENTS = st.integers(-631_152_000, 253_402_128_000).map(
    lambda seconds: dt.datetime.fromtimestamp(seconds, dt.UTC)
)
"""From 1950 to 9999."""


@given(begins=MOMENTS, life=st.integers(1, 200_000), name=st.text("abcäöü", min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_the_dates_of_any_certificate_are_read(begins: dt.datetime, life: int, name: str) -> None:
    """Times on both sides of 2050, where the encoding changes."""
    last = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)
    ends = min(begins, last - dt.timedelta(days=life)) + dt.timedelta(days=life)
    begins = min(begins, ends)
    found = validity("certificate", certificate(begins, ends, name=name))
    assert found == (begins.timestamp(), ends.timestamp())


@pytest.mark.parametrize("key", OTHERS, ids=["ed25519", "rsa"])
@pytest.mark.parametrize("names", [0, 3, 2000])
def test_keys_and_sizes_do_not_matter(key: Any, names: int) -> None:
    """Lengths of one, two and three bytes."""
    begins, ends = dt.datetime(2026, 1, 1, tzinfo=dt.UTC), dt.datetime(2051, 1, 1, tzinfo=dt.UTC)
    found = validity("certificate", certificate(begins, ends, key=key, names=names))
    assert found == (begins.timestamp(), ends.timestamp())


def test_a_certificate_of_version_1_is_read() -> None:
    """It does not say its version; made by `openssl x509 -req`."""
    found = validity("certificate", VERSION_1)
    assert found is not None
    assert found.ends - found.begins == 2 * DAY


def test_of_a_chain_the_first_counts_and_of_authorities_the_last_to_end() -> None:
    chain = b"Bag Attributes\r\n" + lasting(5).replace(b"\n", b"\r\n") + lasting(900) + lasting(100)
    client, authorities = validity("certificate", chain), validity("authority", chain)
    assert client is not None
    assert authorities is not None
    assert (client.ends, authorities.ends) == (NOW + 5 * DAY, NOW + 900 * DAY)


def test_a_block_that_is_damaged_does_not_hide_the_next() -> None:
    damaged = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    half = b"-----BEGIN CERTIFICATE-----\nAAA\n-----END CERTIFICATE-----\n"
    found = validity("certificate", damaged + half + lasting(5))
    assert found is not None
    assert found.ends == NOW + 5 * DAY


@given(content=st.binary(max_size=400), kind=st.sampled_from(["certificate", "authority", "token"]))
@settings(max_examples=300, deadline=None)
def test_nothing_that_a_file_holds_is_an_error(content: bytes, kind: Any) -> None:
    validity(kind, content)
    validity(kind, b"a." + base64.urlsafe_b64encode(content).rstrip(b"=") + b".b")
    armoured = b"-----BEGIN CERTIFICATE-----\n" + base64.b64encode(content) + b"\n-----END CERTIFICATE-----"
    validity(kind, armoured)


@given(at=st.integers(0, 200), byte=st.integers(0, 255), cut=st.integers(0, 400))
@settings(max_examples=300, deadline=None)
def test_a_damaged_certificate_is_no_error(at: int, byte: int, cut: int) -> None:
    der = bytearray(base64.b64decode(b"".join(GOOD.split(b"\n")[1:-2])))
    der[at] = byte
    armoured = base64.b64encode(der[: len(der) - cut])
    validity("certificate", b"-----BEGIN CERTIFICATE-----\n" + armoured + b"\n-----END CERTIFICATE-----\n")


def test_a_certificate_that_is_not_all_there_says_nothing() -> None:
    der = base64.b64decode(b"".join(GOOD.split(b"\n")[1:-2]))
    armoured = base64.b64encode(der[:-1])
    assert validity("certificate", b"-----BEGIN CERTIFICATE-----\n%s\n-----END" % armoured) is None


def test_a_hostile_file_takes_no_time() -> None:
    """A megabyte of what nearly is a certificate; a search that goes back and forth would take hours."""
    done = threading.Event()

    def read() -> None:
        for content in (b"-----BEGIN CERTIFICATE-----" + b" " * 10**6, b"a." * 500_000, b"-" * 10**6):
            validity("certificate", content)
            validity("token", content)
        done.set()

    threading.Thread(target=read, daemon=True).start()
    assert done.wait(30)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (token('{"exp": 1800000000, "iat": 1790000000}'), (1790000000, 1800000000)),
        (token('{"exp": 1800000000.5, "nbf": 1790000000}') + b"\n", (1790000000, 1800000000.5)),
        (b"Bearer " + token('{"exp": 1800000000}'), (float("-inf"), 1800000000)),
        (token("{}"), None),
        (token('{"exp": "soon"}'), None),
        (token('{"exp": 1e300}'), None),
        (token('{"exp": -5}'), None),
        (token("[" * 30000), None),
        (b"s3cret", None),
        (b"a.b.c", None),
        (b"", None),
    ],
)
def test_a_token_is_good_until_it_says(content: bytes, expected: tuple[float, float] | None) -> None:
    assert validity("token", content) == expected


@pytest.mark.parametrize(
    ("left", "life", "expected"),
    [
        (31, 365, None),
        (30, 365, 30),
        (7.01, 365, 30),
        (7, 365, 7),
        (1, 365, 1),
        (0.01, 365, 1),
        (0, 365, 0),
        (-400, 365, 0),
        (0.9, 1, None),
        (0.9, 1.5, 1),
        (5, 6, None),
        (-0.1, 0.04, 0),
    ],
)
def test_it_is_said_thirty_seven_and_one_days_before_but_not_from_birth(
    left: float, life: float, expected: int | None
) -> None:
    assert level(Validity(NOW + (left - life) * DAY, NOW + left * DAY), NOW) == expected


def test_each_is_said_once(tmp_path: Path) -> None:
    file = tmp_path / "client.pem"
    file.write_bytes(lasting(40))
    watch = Watch([Source(str(file), "certificate")])
    said = []
    for hour in range(45 * 24):
        watch.look()
        said += [(notice.level, hour // 24) for notice in watch.notices(NOW + hour * 3600)]
    assert said == [(30, 10), (7, 33), (1, 39), (0, 40)]


def test_a_late_start_says_the_most_urgent_only(tmp_path: Path) -> None:
    file = tmp_path / "client.pem"
    file.write_bytes(lasting(0.5))
    watch = Watch([Source(str(file), "certificate"), Source(str(tmp_path / "missing"), "token")])
    watch.look()
    assert [notice.level for notice in watch.notices(NOW)] == [1]
    assert watch.notices(NOW) == []


def test_the_module_is_degraded_from_seven_days_on_until_the_file_is_exchanged(tmp_path: Path) -> None:
    file, host = tmp_path / "client.pem", Told()
    file.write_bytes(lasting(20))
    link = links.MqttLink(host="far", tls=TlsSettings(certificate=str(file)))
    expiry = Expiry(link, host)  # type: ignore[arg-type] - what it uses of a host
    with capture_logs() as logs:
        expiry.step(0, NOW, True)
        assert host.faults == {}
        assert host.gauges == {f"skerry_credential_days {file}": 20}
        expiry.step(60, NOW + 14 * DAY, True)
        assert host.faults == {
            "credentials": f"{file}: ends 2026-12-11T00:00:00.000Z "
            "(put a new one in its place, it is read again)"
        }
        expiry.step(120, NOW + 21 * DAY, True)
        assert "ended 2026-12-11" in host.faults["credentials"]
    assert [(e["event"], e["log_level"], e["days"]) for e in logs] == [
        ("credentials.expiring", "warning", 20),
        ("credentials.expiring", "warning", 6),
        ("credentials.expiring", "error", -1),
    ]
    new = tmp_path / "new.pem"
    new.write_bytes(lasting(300))
    new.rename(file)
    expiry.step(180, NOW + 21 * DAY, False)
    assert host.faults == {}


def test_a_clock_that_nobody_set_says_nothing_wrong(tmp_path: Path) -> None:
    file, host = tmp_path / "token", Told()
    file.write_bytes(token('{"exp": 1000}'))
    expiry = Expiry(links.HttpLink(url="http://far", token_file=str(file)), host)  # type: ignore[arg-type] - as above
    with capture_logs() as logs:
        expiry.step(0, NOW, False)
        assert (logs, host.faults, host.gauges) == ([], {}, {})
        expiry.step(60, NOW, True)
    assert [e["event"] for e in logs] == ["credentials.expiring"]
    assert list(host.faults) == ["credentials"]


def test_files_are_looked_at_now_and_then(tmp_path: Path) -> None:
    expiry = Expiry(links.FileLink(path=str(tmp_path)), Told())  # type: ignore[arg-type] - as above
    assert expiry.due(-1e9)
    expiry.step(5, NOW, True)
    assert not expiry.due(6)
    assert expiry.due(65)


def test_the_files_of_every_link_are_known(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("client")
    tls = TlsSettings(ca=str(authority.ca), certificate=str(certificate), key=str(key))
    wanted = [Source(str(authority.ca), "authority"), Source(str(certificate), "certificate")]
    assert sources(links.MqttLink(host="h", tls=tls, user="u", password_file="p")) == wanted
    assert sources(links.AwsLink(endpoint="e", tls=tls)) == wanted
    http = links.HttpLink(url="https://h", tls=tls, token_file="t", header_files={"X-Key": "k"})
    assert sources(http) == [Source("t", "token"), *wanted, Source("k", "token")]
    claim = links.Provisioning(template="t", claim_certificate="c", claim_key="k")
    assert sources(links.AwsLink(endpoint="e", provisioning=claim)) == [Source("c", "certificate")]
    identity = links.CertificateIdentity(hub="h", device="d", certificate="c", key="k")
    assert sources(links.AzureLink(identity=identity, ca="a")) == [
        Source("c", "certificate"), Source("a", "authority"),
    ]  # fmt: skip
    assert sources(links.FileLink(path="f")) == []


GOOD = certificate(dt.datetime(2026, 1, 1, tzinfo=dt.UTC), dt.datetime(2027, 1, 1, tzinfo=dt.UTC))
VERSION_1 = b"""\
-----BEGIN CERTIFICATE-----
MIIBFTCBvQIUA+aorjinCkWNbSC2n5xG+43jZk8wCgYIKoZIzj0EAwIwDjEMMAoG
A1UEAwwDb2xkMB4XDTI2MTEyMTA3NDUzNFoXDTI2MTEyMzA3NDUzNFowDjEMMAoG
A1UEAwwDb2xkMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE3JHl7OEObud9n81i
OaVehx+6FNAvuT123D/t64fuGYv+SwjBcBDqeWxA6XUbTRVUHG0nuIobBMq6NmsT
rNsDaTAKBggqhkjOPQQDAgNHADBEAiAGVNIRK7Of++qaDF/PiUqEXQSQhQ2iSb0f
Bzsua2VxPQIgbBX0yWLzV23iXIlRPc5K1xyAFeTQCoA+QKlcmt9NZCA=
-----END CERTIFICATE-----
"""
