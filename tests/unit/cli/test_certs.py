"""`skerry certs` as an operator meets it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import secured
from skerry.cli import main


@pytest.fixture
def site(tmp_path) -> Path:
    secured.load(tmp_path)
    return tmp_path / "site.yaml"


def certs(capsys, *arguments: object) -> tuple[int, str, str]:
    code = main(["certs", *map(str, arguments)])
    return code, *capsys.readouterr()


def secrets_of(folder: Path) -> list[str]:
    return [line for path in folder.rglob("*.key") for line in path.read_text().splitlines()[1:-1]]


def test_makes_renews_and_shows_and_never_prints_a_secret(capsys, site, tmp_path):
    out = tmp_path / "certs"
    said = ""
    for arguments in ([site, "--out", out], [site, "--out", out, "--renew", 400], [out, "--show"]):
        code, text, errors = certs(capsys, *arguments)
        assert (code, errors) == (0, "")
        assert {line.split()[0] for line in text.splitlines()} == {
            "authority", "broker", "observer", "operator", *secured.MODULES,
        }  # fmt: skip
        said += text
    assert [word for word in ("made", "renewed", "good") if word not in said] == []
    secrets = secrets_of(out)
    assert len(secrets) >= 20
    assert "PRIVATE" not in said
    assert not [line for line in secrets if line in said]


def test_writes_what_the_broker_needs_beside_its_certificate(capsys, site, tmp_path):
    out = tmp_path / "certs"
    assert certs(capsys, site, "--out", out, "--hosts", "gw.local")[0] == 0
    assert sorted(p.name for p in (out / "broker").iterdir()) == [
        "acl",
        "ca.crt",
        "mosquitto.conf",
        "tls.crt",
        "tls.key",
    ]
    assert "user capture-gate\n" in (out / "broker" / "acl").read_text()
    assert f"keyfile {out}/broker/tls.key\n" in (out / "broker" / "mosquitto.conf").read_text()
    before = (out / "broker" / "acl").stat().st_mtime_ns
    assert certs(capsys, site, "--out", out)[0] == 0
    assert (out / "broker" / "acl").stat().st_mtime_ns == before


def test_name_of_the_broker_in_the_site_file_is_in_its_certificate(capsys, tmp_path):
    secured.load(tmp_path, f"{secured.SITE}bus: {{host: gw.local, port: 8883}}\n")
    _, text, _ = certs(capsys, tmp_path / "site.yaml", "--out", tmp_path / "certs")
    (line,) = [line for line in text.splitlines() if line.startswith("broker")]
    assert line.endswith("broker, localhost, gw.local, 127.0.0.1")


def test_certificates_that_were_brought_are_checked_and_stay(capsys, site, tmp_path):
    out = tmp_path / "certs"
    certs(capsys, site, "--out", out)
    (out / "authority" / "ca.key").unlink()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    code, text, _ = certs(capsys, site, "--out", out, "--renew", 400)
    assert (code, "brought: nothing was changed" in text) == (0, True)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    (out / "capture-gate" / "tls.key").unlink()
    (out / "uplink" / "tls.crt").write_bytes((out / "buffer" / "tls.crt").read_bytes())
    code, _, errors = certs(capsys, site, "--out", out, "--hosts", "gw.local")
    assert code == 78
    assert errors.splitlines() == [
        "capture-gate/tls.key: expected a file, got nothing",
        "uplink/tls.key: expected the key of uplink/tls.crt, got another",
        "uplink/tls.crt: expected the common name 'uplink', got 'buffer'",
        "broker/tls.crt: expected the hosts gw.local too, got broker, localhost, 127.0.0.1",
    ]
    assert {p: p.read_bytes() for p in before if p.exists() and p.name == "acl"} == {
        p: content for p, content in before.items() if p.name == "acl"
    }


def test_show_of_a_folder_with_something_wrong_ends_with_78(capsys, site, tmp_path):
    out = tmp_path / "certs"
    certs(capsys, site, "--out", out)
    (out / "buffer" / "tls.key").write_bytes((out / "uplink" / "tls.key").read_bytes())
    code, text, errors = certs(capsys, out, "--show")
    assert (code, errors) == (78, "buffer/tls.key: expected the key of buffer/tls.crt, got another\n")
    assert "buffer " in text
    assert certs(capsys, tmp_path / "nowhere", "--show")[0] == 69


def test_module_that_left_the_site_is_named(capsys, site, tmp_path):
    out = tmp_path / "certs"
    certs(capsys, site, "--out", out)
    one = secured.SITE.replace("captures: {capture-gate: [gate], capture-hall: [hall]}\n", "")
    secured.load(tmp_path, one)
    _, text, _ = certs(capsys, site, "--out", out)
    assert [line.split(":")[0] for line in text.splitlines() if "nobody of this site" in line] == [
        "capture-gate", "capture-hall",
    ]  # fmt: skip
    assert "capture-gate" not in (out / "broker" / "acl").read_text()


def test_folder_must_be_named_and_days_must_be_days(capsys, site):
    assert certs(capsys, site)[::2] == (78, "--out: expected a folder for the certificates, got nothing\n")
    for wrong in ("0", "-1", "nan", "many"):
        with pytest.raises(SystemExit):
            certs(capsys, site, "--out", "x", "--days", wrong)


def test_without_cryptography_the_extra_is_named(site, tmp_path):
    (tmp_path / "cryptography.py").write_text("raise ImportError('not here')\n")
    done = subprocess.run(
        [sys.executable, "-m", "skerry", "certs", str(tmp_path), "--show"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr.strip()) == (
        69, "certs: expected cryptography, got nothing (pip install 'skerry[cli]')",
    )  # fmt: skip
