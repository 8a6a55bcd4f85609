"""Secrets are taken out, whatever they are called, look like or are; what is none stays readable."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.redact import cleaned, known_secrets, redacted, without_logins


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("rtsp://user:canary@cam:554/1 is down", "rtsp://cam:554/1 is down"),
        ("rtsp://user:can@ry@cam/1", "rtsp://cam/1"),
        ("rtsp://user:can/ary@cam/1", "rtsp://cam/1"),
        ("https://canary@h/x", "https://h/x"),
        ("http://h/x?token=canary&n=1", "http://h/x?token=***&n=1"),
        ("rtsp://h/user=admin&password=can_ary&channel=1", "rtsp://h/user=admin&password=***&channel=1"),
        ("https://h/?sv=1&sig=canary%3D&se=2", "https://h/?sv=1&sig=***&se=2"),
        ("HostName=h;DeviceId=d;SharedAccessKey=canary=", "HostName=h;DeviceId=d;SharedAccessKey=***"),
        ("Authorization: Bearer canarycanary", "Authorization: ***"),
        ("authorization: canary", "authorization: ***"),
        ("sent Bearer canarycanary to h", "sent Bearer *** to h"),
        ("SharedAccessSignature sr=h&sig=canary&se=1", "SharedAccessSignature ***"),
        ('{"password": "can ary", "n": 1}', '{"password": ***, "n": 1}'),
        ("{'X-Api-Key': 'canary'}", "{'X-Api-Key': ***}"),
        ("a -----BEGIN EC PRIVATE KEY-----\ncanary\n-----END EC PRIVATE KEY----- b", "a *** b"),
        ("-----BEGIN PRIVATE KEY-----\ncanary", "***"),
    ],
)
def test_what_looks_like_a_secret_is_taken_out(text, left):
    assert cleaned(text) == left


@pytest.mark.parametrize(
    "text",
    [
        "password_file: /none: cannot read it: No such file or directory",
        "tls.key: /run/k.pem: expected a private key, got something else",
        "http://127.0.0.1:8080/metrics",
        "expected a token bucket, got none",
        "a@b.example has no address before it",
        "",
    ],
)
def test_what_is_no_secret_stays(text):
    assert cleaned(text) == text


def test_what_is_called_a_secret_is_taken_out_and_its_file_stays():
    data = {
        "password": "canary", "deviceToken": "canary", "connection_string": "canary",
        "tls": {"key": "/k.pem"},
        "password_file": "/p", "header_files": {"authorization": "/a"}, "tokens": 3, "password_tries": 2,
    }  # fmt: skip
    left = redacted(data)
    assert "canary" not in json.dumps(left)
    assert (left["password_file"], left["tls"], left["tokens"]) == ("/p", {"key": "/k.pem"}, 3)
    assert left["password_tries"] == 2


def test_data_that_is_nested_without_end_is_cut_off():
    data: list[object] = []
    for _ in range(5000):
        data = [data]
    assert json.dumps(redacted(data)).count("[") < 40


def test_settings_keep_their_shape_without_logins():
    data = {"cameras": [{"source": {"url": "rtsp://u:canary@cam/1", "password_file": "/p"}}], "n": 1}
    assert without_logins(data) == {
        "cameras": [{"source": {"url": "rtsp://cam/1", "password_file": "/p"}}], "n": 1,
    }  # fmt: skip


def test_content_of_files_that_settings_name_is_known_and_taken_out(tmp_path):
    (tmp_path / "p").write_text("canary one/two\n")
    (tmp_path / "t").write_text("canary-token")
    (tmp_path / "k").write_text("-----BEGIN PRIVATE KEY-----\ncanarykeyline\n")
    (tmp_path / "c").write_text("HostName=h;SharedAccessKey=canaryshared==")
    (tmp_path / "short").write_text("ab\n")
    settings = {
        "bus": {"password_file": str(tmp_path / "p"), "tls": {"key": str(tmp_path / "k"), "ca": "/none"}},
        "link": {
            "header_files": {"X": str(tmp_path / "t")}, "connection_string_file": str(tmp_path / "c"),
            "token_file": str(tmp_path / "missing"), "passphrase_file": str(tmp_path / "short"),
        },
    }  # fmt: skip
    secrets = known_secrets(settings)
    text = (
        "a canary one/two b canary%20one%2Ftwo c canary+one%2Ftwo canary-token canarykeyline canaryshared== d"
    )
    assert "canary" not in cleaned(text, secrets)
    assert "ab" not in secrets


@given(st.text())
def test_cleaning_twice_changes_nothing_more(text):
    once = cleaned(text)
    assert cleaned(once) == once


@given(st.recursive(st.none() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_any_data_can_be_redacted(data):
    json.dumps(redacted(data))
