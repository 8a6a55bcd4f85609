"""Signatures as the OpenSSF's model-signing tool makes and takes them."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)

from model_folders import package_folder, packed
from skerry.cli import main
from skerry.errors import ConfigError, PackageError
from skerry.models import package as packages
from skerry.models.signing import oms

TOOL = os.environ.get("SKERRY_MODEL_SIGNING") or shutil.which("model_signing")
"""The OpenSSF's tool, from an environment of its own: 50 MB, and it pins much that we do not."""
KEY = ec.generate_private_key(ec.SECP256R1())
FILES = {"model.onnx": "ab" * 32, "labels.txt": "cd" * 32, "sub/a.bin": "ef" * 32}

# What model-signing 1.1.1 has made of `package_folder`, with a key that is gone.
TOOL_KEY = b"""\
-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEEFchV5MD51O8mmvb5HdPY1aAAthW
SEZ97GWa5vRUFtFKYTJmNqsKsYRlzDi16tpTZkqbrgn9LLG6gK4dW9qcyw==
-----END PUBLIC KEY-----
"""
TOOL_SIGNATURE = (
    '{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"publicKey"'
    ':{"hint":"e84d396e952b24fbbf3c47fe42f1cf029d297447e1aad2bcbf1762ec1846bf1e"},"tlogEntries":[]},"'
    'dsseEnvelope":{"payload":"ewogICJfdHlwZSI6ICJodHRwczovL2luLXRvdG8uaW8vU3RhdGVtZW50L3YxIiwKICAic3'
    "ViamVjdCI6IFsKICAgIHsKICAgICAgIm5hbWUiOiAidGlueSIsCiAgICAgICJkaWdlc3QiOiB7CiAgICAgICAgInNoYTI1Ni"
    "I6ICJmODE1ZjZjMDUxY2ZjOTZhYzk3M2Q0OGNkNTY5MjE3N2MwODM5ZDY0NWMyZTA0OTkyODQzNjkyNTlmOWQxMmQ0IgogIC"
    "AgICB9CiAgICB9CiAgXSwKICAicHJlZGljYXRlVHlwZSI6ICJodHRwczovL21vZGVsX3NpZ25pbmcvc2lnbmF0dXJlL3YxLj"
    "AiLAogICJwcmVkaWNhdGUiOiB7CiAgICAicmVzb3VyY2VzIjogWwogICAgICB7CiAgICAgICAgImRpZ2VzdCI6ICIwNjE5YT"
    "Q1MTRiZmY3OTVhNzhiOGQzNjExYzgyOTRmNWQxYTExMjNmNzk3YjZlM2VkYWNlMjM5YmQwYjcyY2RiIiwKICAgICAgICAiYW"
    "xnb3JpdGhtIjogInNoYTI1NiIsCiAgICAgICAgIm5hbWUiOiAibGFiZWxzLnR4dCIKICAgICAgfSwKICAgICAgewogICAgIC"
    "AgICJkaWdlc3QiOiAiMTEwZTIwOWI4ZTVkZDdmZDM3OGYzNmQ3YzRkMWUyYWRiNjQ0YzdmMGM4MTQ5NDBjYWE0NDEwYmRlOD"
    "ZjOTNhMCIsCiAgICAgICAgImFsZ29yaXRobSI6ICJzaGEyNTYiLAogICAgICAgICJuYW1lIjogIm1hbmlmZXN0Lmpzb24iCi"
    "AgICAgIH0sCiAgICAgIHsKICAgICAgICAiZGlnZXN0IjogImM4NDVhMTRjYzhjN2MzMDVmZDI3ODM0ZDRmNTFhNTYyZDgwZj"
    "M5MzljNTAwMmIyYjE1MzA3OWJmOGMyYzE4NzciLAogICAgICAgICJhbGdvcml0aG0iOiAic2hhMjU2IiwKICAgICAgICAibm"
    "FtZSI6ICJtb2RlbC5vbm54IgogICAgICB9CiAgICBdLAogICAgInNlcmlhbGl6YXRpb24iOiB7CiAgICAgICJhbGxvd19zeW"
    "1saW5rcyI6IGZhbHNlLAogICAgICAibWV0aG9kIjogImZpbGVzIiwKICAgICAgImlnbm9yZV9wYXRocyI6IFsKICAgICAgIC"
    "AiLmdpdGh1YiIsCiAgICAgICAgIi5naXQiLAogICAgICAgICIuZ2l0YXR0cmlidXRlcyIsCiAgICAgICAgIi5naXRpZ25vcm"
    'UiCiAgICAgIF0sCiAgICAgICJoYXNoX3R5cGUiOiAic2hhMjU2IgogICAgfQogIH0KfQ==","payloadType":"applicati'
    'on/vnd.in-toto+json","signatures":[{"sig":"MEUCICETkCDM0dFTQPhPkdtVl6gRrKOl6xzsQ4oUBepMjPm1AiEAh'
    'gGzPWQjXAJ+ImweSzhadkXyUBPOfPYlX7pW/3j+shw=","keyid":""}]}}'
)


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: packages.digest(path) for path in folder.iterdir()}


def key_file(path: Path, key: Any = KEY, passphrase: bytes | None = None) -> Path:
    kept = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, kept))
    path.chmod(0o600)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    path.with_suffix(".pub").write_bytes(public)
    return path


def resigned(change: Callable[[dict[str, Any]], None], kind: str = oms.PAYLOAD) -> bytes:
    """A signature of this key over a statement that was changed before it was signed."""
    said = json.loads(oms.statement(FILES, "tiny"))
    change(said)
    payload = json.dumps(said).encode()
    encoded = b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)
    signature = KEY.sign(encoded, ec.ECDSA(oms._hash(KEY.public_key())))
    bundle = json.loads(oms.sign(FILES, "tiny", KEY))
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(signature).decode()
    return json.dumps(bundle).encode()


def test_a_signature_of_the_tool_holds_here(tmp_path: Path) -> None:
    folder = package_folder(tmp_path / "any-name")
    public = load_pem_public_key(TOOL_KEY)
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert oms.verify(TOOL_SIGNATURE.encode(), hashes(folder), public, "it") == "tiny"


def test_what_is_signed_here_is_what_the_tool_signs(tmp_path: Path) -> None:
    folder = package_folder(tmp_path / "tiny")
    ours = json.loads(oms.statement(hashes(folder), "tiny"))
    theirs = json.loads(base64.b64decode(json.loads(TOOL_SIGNATURE)["dsseEnvelope"]["payload"]))
    assert theirs["predicate"]["serialization"].pop("ignore_paths") != [], "the tool signs what it leaves out"
    assert ours == theirs
    mine = json.loads(oms.sign(hashes(folder), "tiny", KEY))
    its = json.loads(TOOL_SIGNATURE)
    assert {k: set(v) for k, v in mine.items() if isinstance(v, dict)} == {
        k: set(v) for k, v in its.items() if isinstance(v, dict)
    }
    assert mine["mediaType"] == its["mediaType"]


@pytest.mark.skipif(
    TOOL is None, reason="needs model_signing (pip install model-signing pyopenssl, elsewhere)"
)
@pytest.mark.parametrize("curve", [ec.SECP256R1, ec.SECP384R1, ec.SECP521R1])
def test_the_tool_takes_signatures_made_here_and_the_other_way_round(tmp_path: Path, curve: Any) -> None:
    assert TOOL is not None
    folder, key = (
        package_folder(tmp_path / "tiny"),
        key_file(tmp_path / "oms.key", ec.generate_private_key(curve())),
    )
    ours, theirs = tmp_path / "ours.sig", tmp_path / "theirs.sig"
    assert main(["model", "sign", "oms", str(folder), "--key", str(key), "--out", str(ours)]) == 0
    public = str(key.with_suffix(".pub"))
    command = [TOOL, "verify", "key", str(folder), "--signature", str(ours), "--public_key", public]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    command = [TOOL, "sign", "key", str(folder), "--signature", str(theirs), "--private_key", str(key)]
    subprocess.run(command, capture_output=True, timeout=60, check=True)
    assert main(["model", "verify", str(folder), "--oms", str(theirs), "--public-key", public]) == 0


@pytest.mark.parametrize("curve", [ec.SECP256R1, ec.SECP384R1, ec.SECP521R1])
def test_what_was_signed_is_verified_with_every_curve(curve: Any) -> None:
    key = ec.generate_private_key(curve())
    assert oms.verify(oms.sign(FILES, "tiny@1.0.0", key), FILES, key.public_key(), "it") == "tiny@1.0.0"


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({**FILES, "model.onnx": "00" * 32}, "model.onnx: expected sha256 abababab"),
        ({**FILES, ".git": "00" * 32}, "expected the signed files alone, got .git"),
        ({"model.onnx": "ab" * 32, "labels.txt": "cd" * 32}, "expected sub/a.bin, got no such file"),
    ],
)
def test_other_files_than_those_signed_are_refused(files: dict[str, str], why: str) -> None:
    with pytest.raises(PackageError, match=why):
        oms.verify(oms.sign(FILES, "tiny", KEY), files, KEY.public_key(), "it")


def test_what_the_signature_says_to_ignore_is_not_ignored() -> None:
    def ignoring(said: dict[str, Any]) -> None:
        said["predicate"]["serialization"]["ignore_paths"] = [".git", "extra.bin"]

    content = resigned(ignoring)
    assert oms.verify(content, FILES, KEY.public_key(), "it") == "tiny"
    with pytest.raises(PackageError, match=r"got extra\.bin"):
        oms.verify(content, {**FILES, "extra.bin": "00" * 32}, KEY.public_key(), "it")


def test_a_signature_of_another_key_is_refused() -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    content = oms.sign(FILES, "tiny", other)
    with pytest.raises(PackageError, match="expected a signature of this key"):
        oms.verify(content, FILES, KEY.public_key(), "it")
    bundle = json.loads(content)
    bundle["verificationMaterial"]["publicKey"] = {}
    with pytest.raises(PackageError, match="expected a signature of this key, got another"):
        oms.verify(json.dumps(bundle).encode(), FILES, KEY.public_key(), "it")


def test_every_part_of_a_signature_that_is_changed_is_noticed() -> None:
    content = oms.sign(FILES, "tiny", KEY)
    payload = json.loads(content)["dsseEnvelope"]["payload"]
    statement = base64.b64decode(payload)
    for at in range(0, len(statement), 7):
        changed = statement[:at] + bytes([statement[at] ^ 1]) + statement[at + 1 :]
        forged = content.replace(payload.encode(), base64.b64encode(changed))
        with pytest.raises(PackageError, match="expected a signature of this key"):
            oms.verify(forged, FILES, KEY.public_key(), "it")


def drop_resource(said: dict[str, Any]) -> None:
    del said["predicate"]["resources"][0]


def repeat_resource(said: dict[str, Any]) -> None:
    resources = said["predicate"]["resources"]
    resources.append(resources[0])
    said["subject"][0]["digest"]["sha256"] = oms._whole(each["digest"] for each in resources)


def other_whole(said: dict[str, Any]) -> None:
    said["subject"][0]["digest"]["sha256"] = "00" * 32


def no_whole(said: dict[str, Any]) -> None:
    said["subject"][0]["digest"] = {"sha512": "00" * 64}


def other_method(said: dict[str, Any]) -> None:
    said["predicate"]["serialization"]["method"] = "shards"


def other_hash(said: dict[str, Any]) -> None:
    said["predicate"]["resources"][0]["algorithm"] = "blake3"


def other_predicate(said: dict[str, Any]) -> None:
    said["predicateType"] = "https://model_signing/Digests/v0.1"


def other_statement(said: dict[str, Any]) -> None:
    said["_type"] = "https://in-toto.io/Statement/v0.1"


def two_subjects(said: dict[str, Any]) -> None:
    said["subject"] *= 2


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (drop_resource, "each file once, and the hash of all"),
        (repeat_resource, "each file once, and the hash of all"),
        (other_whole, "each file once, and the hash of all"),
        (no_whole, "each file once, and the hash of all"),
        (other_method, "the statement of a model signature"),
        (other_hash, "the statement of a model signature"),
        (other_predicate, "the statement of a model signature"),
        (other_statement, "the statement of a model signature"),
        (two_subjects, "the statement of a model signature"),
    ],
)
def test_a_statement_that_is_no_such_one_is_refused_though_it_is_signed(
    change: Callable[[dict[str, Any]], None], why: str
) -> None:
    with pytest.raises(PackageError, match=f"^it: expected {why}"):
        oms.verify(resigned(change), FILES, KEY.public_key(), "it")


def test_a_signature_over_another_kind_of_payload_is_refused() -> None:
    with pytest.raises(PackageError, match="expected a signature of this key"):
        oms.verify(resigned(lambda _said: None, "text/plain"), FILES, KEY.public_key(), "it")


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"\xff", b"[" * 100_000, b'{"mediaType": "x"}', b" " * (oms.MOST_BYTES + 1)],
    ids=["empty", "none", "list", "bytes", "deep", "type", "long"],
)  # fmt: skip
def test_what_is_no_bundle_is_refused(content: bytes) -> None:
    with pytest.raises(PackageError, match="expected a Sigstore bundle"):
        oms.verify(content, FILES, KEY.public_key(), "it")


def test_what_is_no_base64_is_refused() -> None:
    bundle = json.loads(oms.sign(FILES, "tiny", KEY))
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = "?"
    with pytest.raises(PackageError, match="expected base64"):
        oms.verify(json.dumps(bundle).encode(), FILES, KEY.public_key(), "it")


@pytest.mark.parametrize(
    "key",
    [
        ed25519.Ed25519PrivateKey.generate(),
        ec.generate_private_key(ec.SECP256K1()),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["ed25519", "secp256k1", "rsa"],
)
def test_keys_that_the_tool_does_not_take_are_refused(tmp_path: Path, key: Any) -> None:
    path = key_file(tmp_path / "oms.key", key)
    with pytest.raises(ConfigError, match="expected an EC key"):
        oms.read_private(path)
    with pytest.raises(ConfigError, match="expected an EC key"):
        oms.read_public(path.with_suffix(".pub"))


def test_a_key_that_others_may_read_or_that_wants_a_passphrase_is_refused(tmp_path: Path) -> None:
    path = key_file(tmp_path / "oms.key")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="expected permissions 600"):
        oms.read_private(path)
    closed = key_file(tmp_path / "closed.key", passphrase=b"secret")
    assert oms.read_private(closed, b"secret").public_key() == KEY.public_key()
    with pytest.raises(ConfigError, match="expected a passphrase"):
        oms.read_private(closed)
    with pytest.raises(ConfigError, match="expected a private key"):
        oms.read_private(closed, b"other")
    with pytest.raises(ConfigError, match="expected a public key"):
        oms.read_public(path)


def test_a_signature_of_a_folder_is_one_of_its_layout_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed(tmp_path)
    key, signature = key_file(tmp_path / "oms.key"), tmp_path / "tiny.sig"
    sign = [
        "model",
        "sign",
        "oms",
        str(tmp_path / "1.0.0"),
        "--key",
        str(key),
        "--out",
        str(signature),
        "--json",
    ]
    assert main(sign) == 0
    assert json.loads(capsys.readouterr().out)["files"] == 3
    verify = ["--oms", str(signature), "--public-key", str(key.with_suffix(".pub"))]
    assert main(["model", "verify", str(tmp_path / "layout"), *verify, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["signed_as"] == "tiny@1.0.0"
    (tmp_path / "1.0.0" / "extra.txt").write_text("x")
    assert main(["model", "verify", str(tmp_path / "1.0.0"), *verify]) == 65
    assert "expected the signed files alone, got extra.txt" in capsys.readouterr().err


def test_a_signature_is_never_written_into_what_it_signs(tmp_path: Path) -> None:
    folder, key = package_folder(tmp_path / "tiny"), key_file(tmp_path / "oms.key")
    sign = ["model", "sign", "oms", str(folder), "--key", str(key), "--out", str(folder / "model.sig")]
    assert main(sign) == 78
    assert not (folder / "model.sig").exists()


def test_verify_wants_a_root_or_a_signature_with_its_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["model", "verify", str(tmp_path)]) == 78
    assert "expected --root FILE, or --oms" in capsys.readouterr().err
    assert main(["model", "verify", str(tmp_path), "--oms", str(tmp_path / "x.sig")]) == 78
    assert "expected --public-key FILE" in capsys.readouterr().err
