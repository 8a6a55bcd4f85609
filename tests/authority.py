"""A throw-away authority, and certificates that are good, or bad in one way each."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID


class Authority:
    """Signs certificates, and writes them to files.

    Args:
        folder: where the files go.
        name: of its own file and key, and its common name.

    Attributes:
        ca: file of its own certificate.
    """

    def __init__(self, folder: Path, name: str = "ca") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._key = _key()
        self._name = _named(name)
        self._certificate = (
            self._builder(self._name, self._key.public_key(), (-7.0, 3650.0))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, SHA256())
        )
        self.ca = folder / f"{name}.pem"
        self.ca.write_bytes(self._certificate.public_bytes(Encoding.PEM))
        (folder / f"{name}.key").write_bytes(_private(self._key))

    def issue(
        self, name: str, *hosts: str, days: tuple[float, float] = (-7.0, 2.0), common: str = "",
        key: Path | None = None,
    ) -> tuple[Path, Path]:  # fmt: skip
        """The files of a certificate and its key.

        Args:
            name: of the files.
            hosts: names and addresses that it is good for.
            days: when it begins and ends, from now; both negative: it is over.
            common: the common name; empty: `name`.
            key: of a certificate issued before, to be used again; None: a new one.
        """
        private = key or self._folder / f"{name}.key"
        if key is None:
            private.write_bytes(_private(_key()))
        own = load_pem_private_key(private.read_bytes(), None)
        assert isinstance(own, ec.EllipticCurvePrivateKey)
        builder = self._builder(_named(common or name), own.public_key(), days)
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName(map(_host, hosts)), critical=False)
        certificate = self._folder / f"{name}.pem"
        certificate.write_bytes(builder.sign(self._key, SHA256()).public_bytes(Encoding.PEM))
        return certificate, private

    def server(self, *hosts: str, mutual: bool = False) -> ssl.SSLContext:
        """What a server needs that is known by these names, and, if mutual, wants to know its clients."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.issue("server", *hosts))
        if mutual:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.ca)
        return context

    def client(self, name: str = "client") -> ssl.SSLContext:
        """What a client needs that trusts this authority alone and shows a certificate of it."""
        context = ssl.create_default_context(cafile=self.ca)
        context.load_cert_chain(*self.issue(name))
        return context

    def _builder(
        self, name: x509.Name, key: ec.EllipticCurvePublicKey, days: tuple[float, float]
    ) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + dt.timedelta(days=min(days[0], days[1] - 1)))
            .not_valid_after(now + dt.timedelta(days=days[1]))
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
        )


def make(folder: Path) -> Path:
    """Make a set of files and return their folder.

    `ca` and `other` are authorities. `server` (for localhost) and `client` are signed by `ca`;
    `server-other` and `client-other` by `other`; `server-old` and `client-old` have ended. A key is
    named like its certificate, up to the dash.
    """
    ca, other = Authority(folder), Authority(folder, "other")
    for name, hosts in (("server", ("localhost",)), ("client", ())):
        _, key = ca.issue(name, *hosts)
        other.issue(f"{name}-other", *hosts, common=name, key=key)
        ca.issue(f"{name}-old", *hosts, days=(-7, -1), common=name, key=key)
    return folder


def lock(key: Path, password: str) -> Path:
    """The same key in a file `locked.key`, encrypted."""
    private = load_pem_private_key(key.read_bytes(), None)
    locked = key.with_name("locked.key")
    encryption = BestAvailableEncryption(password.encode())
    locked.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    return locked


def _key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
