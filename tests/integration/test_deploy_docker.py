"""`skerry deploy docker` where there is no engine, or not what it needs: what it says."""

import gc
import sys

import pytest

from needs import ROOT
from skerry.cli import main

DEMO = str(ROOT / "sites" / "demo.yaml")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "unix:///nowhere/docker.sock", "nonsense://x"])
def test_an_engine_that_is_not_there_is_unavailable(address, monkeypatch, capsys):
    monkeypatch.setenv("DOCKER_HOST", address)
    assert main(["deploy", "docker", DEMO, "--plain-bus"]) == 69
    err = capsys.readouterr().err
    assert f"DOCKER_HOST: expected an engine at {address}, got none" in err
    gc.collect()  # the client forgets a socket that could not be connected, and only this test may warn of it


@pytest.mark.parametrize(
    ("command", "client"), [(["docker", DEMO, "--plain-bus"], "docker"), (["k3s", DEMO], "kubernetes")]
)
def test_without_the_extra_the_error_names_it(command, client, monkeypatch, capsys):
    for module in [name for name in sys.modules if name.startswith("skerry.deploy.") and name.endswith(
        ("docker_engine", "kubernetes_api"))]:  # fmt: skip
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, client, None)
    assert main(["deploy", *command]) == 69
    assert (
        f"expected the extra deploy, got no {client} (pip install 'skerry[deploy]')"
        in capsys.readouterr().err
    )


def test_a_secure_bus_needs_certificates(capsys):
    assert main(["deploy", "docker", DEMO]) == 78
    assert "--certificates: expected a folder of `skerry certs SITE --out DIR`" in capsys.readouterr().err


def test_files_that_are_not_there_are_all_named_with_their_path_in_the_site(tmp_path, capsys):
    site = tmp_path / "site.yaml"
    text = (ROOT / "sites" / "demo.yaml").read_text().replace("../models", str(ROOT / "models"))
    source = "{kind: synthetic, scene: belt, seed: 1, fps: 15, width: 640, height: 480}"
    assert source in text
    text = text.replace(source, "{kind: file, path: belt.mp4}").replace(
        "link: {kind: file, path: events.jsonl}",
        "link: {kind: mqtt, host: far.example, user: me, password_file: password}",
    )
    site.write_text(text)
    assert main(["deploy", "docker", str(site), "--plain-bus", "--inputs", str(tmp_path)]) == 78
    err = capsys.readouterr().err
    assert f"site.yaml: $.cameras[0].source.path: expected inputs/belt.mp4 in {tmp_path}/belt.mp4" in err
    assert "site.yaml: $.link.password_file: expected secrets/password in" in err


def test_state_without_remove_is_refused(capsys):
    assert main(["deploy", "docker", DEMO, "--plain-bus", "--state"]) == 78
    assert "--state: expected it with --remove" in capsys.readouterr().err
