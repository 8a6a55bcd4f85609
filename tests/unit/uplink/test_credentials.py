"""Secrets by reference: read again when their files change, never shown."""

import ssl
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from authority import Authority
from skerry.errors import ConfigError
from skerry.settings import TlsSettings
from skerry.uplink.credentials import context, secret


def replace(path: Path, text: str) -> None:
    """As a rotation does it: another file of the same name."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


def test_a_secret_is_read_again_when_its_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("one\n")
    watched = secret("link.token_file", str(path))
    assert (watched.get(), watched.version) == ("one", 1)
    replace(path, "two\r\n")
    assert (watched.get(), watched.version) == ("two", 2)
    assert (watched.get(), watched.version) == ("two", 2)


def test_a_secret_behind_a_link_that_is_exchanged_is_read_again(tmp_path: Path) -> None:
    """As Kubernetes does it."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "token").write_text(name)
    (tmp_path / "data").symlink_to("a")
    watched = secret("w", str(tmp_path / "data" / "token"))
    (tmp_path / "next").symlink_to("b")
    (tmp_path / "next").rename(tmp_path / "data")
    assert watched.get() == "b"


def test_a_secret_that_is_gone_or_empty_for_a_moment_stays(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("one")
    watched = secret("link.token_file", str(path))
    path.unlink()
    with capture_logs() as logs:
        assert watched.get() == "one"
        replace(path, "")
        assert watched.get() == "one"
        assert watched.get() == "one"
    assert [entry["event"] for entry in logs] == ["credentials.not_read"] * 2
    replace(path, "two")
    assert watched.get() == "two"


def test_a_secret_in_doubt_is_read_again_although_nothing_shows_a_change(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("one")
    watched = secret("w", str(path))
    watched.doubt()
    before = watched.version
    watched.get()
    assert watched.version == before + 1


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"a\nb", "pä55".encode(), b" a", b"a\x00", b"a\r\nX-More: 1"]
)
def test_a_secret_that_is_not_one_visible_line_is_refused_and_not_shown(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        secret("link.token_file", str(path))
    error = caught.value
    assert str(error) == f"link.token_file: {path}: expected one line of visible ASCII, got something else"
    assert error.__cause__ is None


def test_a_secret_that_is_not_there_is_an_error_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^link.token_file: .*: cannot read it: No such file"):
        secret("link.token_file", str(tmp_path / "token"))


def test_a_certificate_without_its_key_yet_leaves_the_old_one(tmp_path: Path) -> None:
    first, second = Authority(tmp_path / "a"), Authority(tmp_path / "b")
    certificate, key = first.issue("client")
    watched = context(TlsSettings(ca=str(first.ca), certificate=str(certificate), key=str(key)))
    old = watched.get()
    new_certificate, new_key = second.issue("client")
    new_certificate.replace(certificate)
    with capture_logs() as logs:
        assert watched.get() is old
    assert "link.tls.certificate" in logs[0]["error"]
    new_key.replace(key)
    assert watched.get() is not old
    assert watched.version == 2


def test_tls_is_1_2_or_later_and_checks_the_name() -> None:
    made = context(TlsSettings()).get()
    assert made.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert made.check_hostname
    assert made.verify_mode == ssl.CERT_REQUIRED
