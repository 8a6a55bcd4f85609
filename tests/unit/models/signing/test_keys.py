from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from skerry.errors import ConfigError, Unavailable
from skerry.models.signing import keys

PASSPHRASE = b"correct horse"


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "COST", 2**10)


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
def test_a_key_signs_what_its_public_half_verifies(tmp_path: Path, passphrase: bytes | None) -> None:
    public = keys.make(tmp_path / "keys", "root-1", passphrase)
    private = tmp_path / "keys" / "root-1.key"
    assert (private.stat().st_mode & 0o777, private.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert (b"ENCRYPTED" in private.read_bytes()) is (passphrase is not None)
    signer = keys.read_private(private, passphrase)
    assert signer.public_key == public == keys.public_keys(tmp_path / "keys")["root-1"]
    public.verify_signature(signer.sign(b"content"), b"content")


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    keys.make(tmp_path, "targets", None)
    before = (tmp_path / "targets.key").read_bytes()
    with pytest.raises(ConfigError, match=r"targets\.key: expected a new key"):
        keys.make(tmp_path, "targets", PASSPHRASE)
    (tmp_path / "targets.key").unlink()
    with pytest.raises(ConfigError, match=r"targets\.pub: expected a new key"):
        keys.make(tmp_path, "targets", None)
    assert b"PRIVATE" in before


def test_an_encrypted_key_opens_with_its_passphrase_alone(tmp_path: Path) -> None:
    keys.make(tmp_path, "root-1", PASSPHRASE)
    with pytest.raises(ConfigError, match=r"expected a passphrase for it, got none \(--passphrase-file\)"):
        keys.signers(tmp_path, None)
    with pytest.raises(ConfigError, match="another passphrase"):
        keys.signers(tmp_path, b"wrong")
    (tmp_path / "root-1.key").chmod(0o644)
    assert len(keys.signers(tmp_path, PASSPHRASE)) == 1, "encrypted, it may lie about"


def test_a_passphrase_is_stretched_at_a_cost_that_the_file_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys.make(tmp_path, "one", PASSPHRASE)
    monkeypatch.setattr(keys, "COST", 2**11)
    keys.make(tmp_path, "two", PASSPHRASE)
    assert len(keys.signers(tmp_path, PASSPHRASE)) == 2
    path = tmp_path / "two.key"
    line, _, pem = path.read_bytes().partition(b"\n")
    assert line.startswith(b"scrypt n=2048 salt=")
    for cost in (0, 1, 2047, 2**19, 9999999):
        path.write_bytes(line.replace(b"2048", str(cost).encode()) + b"\n" + pem)
        with pytest.raises(ConfigError, match="expected a power of two"):
            keys.signers(tmp_path, PASSPHRASE)
    path.write_bytes(pem)
    with pytest.raises(ConfigError, match="another passphrase"):
        keys.signers(tmp_path, PASSPHRASE)


def test_an_encrypted_key_from_elsewhere_opens_as_it_is(tmp_path: Path) -> None:
    pem = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(PASSPHRASE)
    )
    (tmp_path / "root-1.key").write_bytes(pem)
    assert len(keys.signers(tmp_path, PASSPHRASE)) == 1


def test_a_plain_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    keys.make(tmp_path, "targets", None)
    (tmp_path / "targets.key").chmod(0o640)
    with pytest.raises(ConfigError, match="expected permissions 600, got 640"):
        keys.signers(tmp_path, None)


def test_a_passphrase_is_the_first_line_of_a_file_of_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "pass"
    assert keys.read_passphrase(None) is None
    with pytest.raises(Unavailable):
        keys.read_passphrase(path)
    path.write_bytes(PASSPHRASE + b"\nsomething else")
    path.chmod(0o600)
    assert keys.read_passphrase(path) == PASSPHRASE
    path.write_bytes(b"\n")
    with pytest.raises(ConfigError, match="expected a passphrase in its first line"):
        keys.read_passphrase(path)
    path.chmod(0o604)
    with pytest.raises(ConfigError, match="expected permissions 600"):
        keys.read_passphrase(path)


def test_what_is_no_key_of_ours_is_refused(tmp_path: Path) -> None:
    other = generate_private_key(65537, 2048)
    (tmp_path / "rsa.key").write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "rsa.key").chmod(0o600)
    (tmp_path / "rsa.pub").write_bytes(
        other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    for read in (lambda: keys.signers(tmp_path, None), lambda: keys.public_keys(tmp_path)):
        with pytest.raises(ConfigError, match="expected an Ed25519 key"):
            read()
    (tmp_path / "rsa.key").write_bytes(b"-----BEGIN")
    (tmp_path / "rsa.pub").write_bytes(b"")
    for read in (lambda: keys.signers(tmp_path, None), lambda: keys.public_keys(tmp_path)):
        with pytest.raises(ConfigError, match="in PEM, got something else"):
            read()
    with pytest.raises(Unavailable):
        keys.signers(tmp_path / "nowhere", None)
