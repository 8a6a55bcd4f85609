"""Certificates of a site's bus: made by a small authority of its own, or brought, and checked either way.

Pure but for the drawing of keys and serial numbers: PEM in, PEM out, and what time it is comes in as an
argument. Keys are of EC P-256, which every TLS stack has and the smallest device signs with in a millisecond.

Source: RFC 5280, sections 4.1 and 4.2; NIST SP 800-57, part 1, 5.6.1 for the strength.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from skerry.errors import ConfigError

_BACKDATED = dt.timedelta(hours=1)
"""A certificate counts from before it was made: the clocks of a site are not one."""
_LONGEST_CHAIN = 8


@dataclass(frozen=True, kw_only=True)
class Issued:
    """A certificate with what follows it up to its authority, and its private key. PEM."""

    certificate: bytes
    key: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a certificate says."""

    name: str
    """The common name, by which a broker knows the one who shows it; empty where there is not exactly one."""
    site: str
    hosts: tuple[str, ...]
    """Names and addresses that a server is good for."""
    begins: dt.datetime
    ends: dt.datetime
    serial: int

    def due(self, now: dt.datetime, within: dt.timedelta | None = None) -> bool:
        """Whether it ends within a time; None: within a third of its life."""
        return self.ends - now < ((self.ends - self.begins) / 3 if within is None else within)


def new_authority(site: str, now: dt.datetime, days: float) -> Issued:
    """An authority that signs for one site and may have no other below it.

    Args:
        site: its name.
        now: with a time zone.
        days: how long it lasts.
    """
    key = _key()
    # Two authorities of a site have two names: not every TLS stack goes by key identifiers.
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, site),
            x509.NameAttribute(NameOID.COMMON_NAME, f"skerry bus {now:%Y-%m-%d %H:%M:%S.%f}"),
        ]
    )
    builder = (
        _builder(subject, subject, key.public_key(), now, now + dt.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return Issued(certificate=builder.sign(key, SHA256()).public_bytes(Encoding.PEM), key=_private(key))


def issue(authority: Issued, name: str, now: dt.datetime, days: float, hosts: Sequence[str] = ()) -> Issued:
    """A certificate with a new key, good for a server where there are hosts and for a client where not.

    Args:
        authority: who signs. The certificate does not outlive it.
        name: the common name.
        now: with a time zone.
        days: how long it lasts.
        hosts: names and addresses of a server.

    Raises:
        ConfigError: the authority cannot be read, or a host is none.
    """
    (signer, *_) = read(authority.certificate, "authority")
    signing = load_pem_private_key(authority.key, None)
    assert isinstance(signing, ec.EllipticCurvePrivateKey)
    key = _key()
    site = signer.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    subject = x509.Name([*site, x509.NameAttribute(NameOID.COMMON_NAME, name)])
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
    ends = min(now + dt.timedelta(days=days), signer.not_valid_after_utc)
    builder = (
        _builder(subject, signer.subject, key.public_key(), now, ends)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()), critical=False
        )
    )
    if hosts:
        names = x509.SubjectAlternativeName([_host(host) for host in dict.fromkeys(hosts)])
        builder = builder.add_extension(names, critical=False)
    return Issued(certificate=builder.sign(signing, SHA256()).public_bytes(Encoding.PEM), key=_private(key))


def read(pem: bytes, where: str) -> list[x509.Certificate]:
    """The certificates of a PEM file, at least one.

    Raises:
        ConfigError: there are none, or they are damaged.
    """
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise ConfigError(f"{where}: expected PEM certificates, got something else") from error


def facts(certificate: x509.Certificate) -> Facts:
    """What a certificate says."""
    return Facts(
        name=_only(certificate.subject, NameOID.COMMON_NAME),
        site=_only(certificate.subject, NameOID.ORGANIZATION_NAME),
        hosts=_hosts(certificate),
        begins=certificate.not_valid_before_utc,
        ends=certificate.not_valid_after_utc,
        serial=certificate.serial_number,
    )


def bundle(authorities: Iterable[bytes], now: dt.datetime) -> bytes:
    """Those authorities that have not ended, each once, in the order given. PEM in, PEM out."""
    found = [certificate for pem in authorities for certificate in read(pem, "authority")]
    lasting = dict.fromkeys(one.public_bytes(Encoding.PEM) for one in found if one.not_valid_after_utc > now)
    return b"".join(lasting)


def problems_of(
    where: str, name: str, its: Issued, now: dt.datetime, hosts: Sequence[str] | None = None
) -> Iterator[str]:
    """What is wrong with a certificate and its key, whoever made them.

    Args:
        where: its folder, in messages.
        name: whose it has to be.
        its: the certificate and the key.
        now: with a time zone.
        hosts: names and addresses by which a server is looked for; None: it is a client's.
    """
    try:
        (certificate, *_) = read(its.certificate, f"{where}/tls.crt")
    except ConfigError as error:
        yield from error.problems
        return
    yield from _key_problems(where, certificate, its.key)
    says = facts(certificate)
    if says.name != name:
        yield f"{where}/tls.crt: expected the common name {name!r}, got {says.name!r}"
    if now >= says.ends:
        ended = f"{says.ends:%Y-%m-%d %H:%M} UTC"
        yield f"{where}/tls.crt: expected one that lasts, got one that ended on {ended}"
    elif now < says.begins:
        yield (
            f"{where}/tls.crt: expected one that counts already, got one that begins on "
            f"{says.begins:%Y-%m-%d %H:%M} UTC (is the clock right?)"
        )
    missing = [host for host in hosts or () if host not in says.hosts]
    if missing:
        got = ", ".join(says.hosts) or "none"
        yield f"{where}/tls.crt: expected the hosts {', '.join(missing)} too, got {got}"
    purpose, word = (
        (ExtendedKeyUsageOID.CLIENT_AUTH, "client")
        if hosts is None
        else (ExtendedKeyUsageOID.SERVER_AUTH, "server")
    )
    if not _good_for(certificate, purpose):
        yield f"{where}/tls.crt: expected one that is good for a {word}, got one for other purposes"


def trusted(chain: bytes, authorities: bytes, now: dt.datetime) -> bool:
    """Whether a certificate leads, over those that follow it, to one of the authorities. PEM.

    Raises:
        ConfigError: one of them cannot be read.
    """
    current, *between = read(chain, "certificate")
    roots = read(authorities, "authorities")
    for _ in range(_LONGEST_CHAIN):
        signer = next((one for one in [*roots, *between] if _signed(current, one, now)), None)
        if signer is None:
            return False
        if signer in roots:
            return True
        current = signer
    return False


def fits(its: Issued) -> bool:
    """Whether the key is the certificate's."""
    try:
        (certificate, *_) = read(its.certificate, "")
    except ConfigError:
        return False
    return not list(_key_problems("", certificate, its.key))


def _key_problems(where: str, certificate: x509.Certificate, key: bytes) -> Iterator[str]:
    """Says nothing of what is in the key."""
    try:
        private = load_pem_private_key(key, None)
    except TypeError:
        yield f"{where}/tls.key: expected an unencrypted key, got one with a password"
    except ValueError:
        yield f"{where}/tls.key: expected a PEM private key, got something else"
    else:
        if _public(private.public_key()) != _public(certificate.public_key()):
            yield f"{where}/tls.key: expected the key of {where}/tls.crt, got another"


def _signed(certificate: x509.Certificate, by: x509.Certificate, now: dt.datetime) -> bool:
    if not by.not_valid_before_utc <= now < by.not_valid_after_utc or not _is_authority(by):
        return False
    try:
        certificate.verify_directly_issued_by(by)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _good_for(certificate: x509.Certificate, purpose: x509.ObjectIdentifier) -> bool:
    """One that names no purpose is good for all."""
    try:
        named = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    return purpose in named


def _hosts(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    addresses = (str(address) for address in names.get_values_for_type(x509.IPAddress))
    return (*names.get_values_for_type(x509.DNSName), *addresses)


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass  # then it is a name
    labels = host.split(".")
    good = host.isascii() and all(label and label.replace("-", "").isalnum() for label in labels)
    if not good or len(host) > 253:
        raise ConfigError(f"--hosts: expected names and addresses of the broker, got {host!r}")
    return x509.DNSName(host)


def _only(name: x509.Name, oid: x509.ObjectIdentifier) -> str:
    found = name.get_attributes_for_oid(oid)
    return str(found[0].value) if len(found) == 1 else ""


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: dt.datetime, ends: dt.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(ends)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, key_cert_sign=signs_certificates,
        crl_sign=signs_certificates, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _public(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
