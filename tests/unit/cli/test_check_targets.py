"""`skerry check --target`: secrets and certificates that must be there before a site goes anywhere."""

import pytest

from needs import ROOT
from skerry.cli import main

SITE = str(ROOT / "sites" / "line.yaml")


def check(*arguments: str, target: str = "compose") -> int:
    return main(["check", SITE, "--target", target, *arguments])


def test_each_missing_or_empty_secret_is_named_with_its_path(tmp_path, capsys):
    (tmp_path / "camera.password").write_bytes(b"")
    assert check("--secrets", str(tmp_path)) == 78
    said = capsys.readouterr().err
    assert "line.yaml: $.cameras[0].source.password_file: expected a secret in" in said
    assert "got an empty file" in said
    assert "line.yaml: $.link.password_file: expected a secret in" in said
    assert "got no such file or directory" in said


def test_secrets_that_are_there_are_no_errors(tmp_path, capsys):
    for name in ("camera.password", "far-end.password"):
        (tmp_path / name).write_text("hunter2", encoding="utf-8")
    assert check("--secrets", str(tmp_path)) == 0
    assert "hunter2" not in "".join(capsys.readouterr())


def test_a_target_with_another_link_does_not_want_the_secrets_of_the_first(tmp_path, capsys):
    site = tmp_path / "site.yaml"
    text = (
        (ROOT / "sites" / "line.yaml").read_text(encoding="utf-8").replace("../models", str(ROOT / "models"))
    )
    own = "  compose: {link: {kind: http, url: 'https://far.example', token_file: far.token}}\n"
    site.write_text(text + own, encoding="utf-8")
    (tmp_path / "camera.password").write_text("x", encoding="utf-8")
    assert main(["check", str(site), "--target", "compose", "--secrets", str(tmp_path)]) == 78
    said = capsys.readouterr().err
    assert "site.yaml: $.targets.compose.link.token_file: expected a secret" in said
    assert "far-end.password" not in said


def test_certificates_are_looked_at_for_everybody(tmp_path, capsys):
    assert check("--certificates", str(tmp_path)) == 78
    assert "--certificates:" in capsys.readouterr().err
    assert main(["certs", SITE, "--out", str(tmp_path)]) == 0
    assert check("--certificates", str(tmp_path)) == 0


def test_a_plain_bus_wants_no_certificates(tmp_path):
    assert check("--certificates", str(tmp_path), "--plain-bus") == 0


@pytest.mark.parametrize("target", ["nowhere", ""])
def test_a_target_that_is_none_is_refused(target, capsys):
    with pytest.raises(SystemExit):
        check(target=target)
    assert "invalid choice" in capsys.readouterr().err
