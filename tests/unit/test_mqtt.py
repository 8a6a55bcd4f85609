import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samples import SAMPLES
from skerry.channels import STATUS
from skerry.errors import ConfigError
from skerry.mqtt import MqttBus, backoff_s, tls_context
from skerry.settings import BusSettings, TlsSettings


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_backoff_is_never_long_nor_none(attempt, jitter):
    assert 0.05 <= backoff_s(attempt, jitter) <= 2.0


def test_backoff_doubles_up_to_two_seconds():
    assert [backoff_s(n, 1.0) for n in range(7)] == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]


@given(st.integers(0, 100))
def test_jitter_takes_away_at_most_half(attempt):
    assert backoff_s(attempt, 0.0) == pytest.approx(backoff_s(attempt, 1.0) / 2)


def test_bus_that_was_never_connected_says_no_and_closes():
    before = threading.active_count()
    bus = MqttBus(BusSettings(port=1), "s", "m", (STATUS, SAMPLES["status"]))
    assert not bus.connected
    assert bus.publish(STATUS, SAMPLES["status"], "m") is False
    bus.close()
    bus.close()
    assert threading.active_count() <= before


def test_bus_whose_broker_is_being_looked_up_does_not_hold_up_the_end(monkeypatch):
    """A name that nobody answers for: there is nothing to flush, and a module must keep to its grace."""
    asked, answer = threading.Event(), threading.Event()

    def look_up(*_):
        asked.set()
        answer.wait(60)
        raise OSError("nobody answered")

    monkeypatch.setattr("socket.getaddrinfo", look_up)
    bus = MqttBus(BusSettings(host="broker"), "s", "m", (STATUS, SAMPLES["status"]))
    try:
        bus.connect()
        assert asked.wait(30)
        begin = time.monotonic()
        bus.close()
        assert time.monotonic() - begin < 1.8
    finally:
        answer.set()


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (BusSettings(host=""), "bus: expected a host and a port above 0, got :1883"),
        (BusSettings(port=0), "bus: expected a host and a port above 0, got 127.0.0.1:0"),
        (
            BusSettings(user="u", password_file="/none"),
            "password_file: /none: cannot read it: No such file or directory",
        ),
    ],
)
def test_wrong_settings_are_said_at_once(settings, problem):
    with pytest.raises(ConfigError) as caught:
        MqttBus(settings, "s", "m")
    assert caught.value.problems == (problem,)


def test_tls_files_that_hold_something_else_are_named(tmp_path):
    (tmp_path / "text.pem").write_text("not a certificate")
    with pytest.raises(ConfigError, match=r"tls\.ca: .*text\.pem: expected PEM certificates, got"):
        tls_context(TlsSettings(ca=str(tmp_path / "text.pem")))
    with pytest.raises(
        ConfigError, match=r"tls\.certificate: .*text\.pem: expected a PEM certificate and its"
    ):
        tls_context(TlsSettings(certificate=str(tmp_path / "text.pem")))
    with pytest.raises(ConfigError, match="got No such file or directory"):
        tls_context(TlsSettings(certificate="/none"))
