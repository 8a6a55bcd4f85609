import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import needs
from skerry.broker import BrokerProcess, answers, free_port, mosquitto_configuration
from skerry.errors import ConfigError, Unavailable
from skerry.testing import eventually

kinds = pytest.mark.parametrize("kind", [pytest.param("mosquitto", marks=needs.mosquitto), "amqtt"])


@kinds
def test_broker_answers_once_started_and_is_gone_once_stopped(tmp_path, kind):
    broker = BrokerProcess(tmp_path / "deep" / "folder", kind=kind)
    assert (broker.pid, broker.poll()) == (0, None)
    with broker:
        assert answers(broker.port)
        assert broker.poll() is None
        assert Path(f"/proc/{broker.pid}").exists()
    assert broker.poll() is not None
    assert not answers(broker.port)
    broker.stop()


@kinds
def test_broker_killed_with_9_comes_back_on_the_same_port(tmp_path, kind):
    with BrokerProcess(tmp_path, kind=kind) as broker:
        for _ in range(3):
            port, pid = broker.port, broker.pid
            os.kill(pid, signal.SIGKILL)
            eventually(lambda: broker.poll() == -signal.SIGKILL)
            broker.start()
            assert broker.port == port
            assert broker.pid != pid
            assert answers(port)


@kinds
def test_frozen_broker_is_stopped_too(tmp_path, kind):
    broker = BrokerProcess(tmp_path, kind=kind)
    broker.start()
    os.kill(broker.pid, signal.SIGSTOP)
    broker.stop()
    assert broker.poll() == -signal.SIGKILL


@kinds
def test_broker_listens_on_loopback_only(tmp_path, kind):
    with BrokerProcess(tmp_path, kind=kind) as broker:
        rows = [
            line.split()
            for table in ("/proc/net/tcp", "/proc/net/tcp6")
            for line in Path(table).read_text().splitlines()
        ]
        listening = [row[1] for row in rows if row[3] == "0A" and row[1].endswith(f":{broker.port:04X}")]
        assert listening == [f"0100007F:{broker.port:04X}"]


@kinds
def test_port_in_use_is_a_clear_error(tmp_path, kind):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigError, match=rf"broker\.port: expected a free port, got {port}, where something"
        ):
            BrokerProcess(tmp_path, port, kind).start()


def test_broker_that_ends_at_once_is_unavailable_with_its_last_words(tmp_path, monkeypatch):
    program = tmp_path / "mosquitto"
    program.write_text("#!/bin/sh\necho no such option >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(
        Unavailable, match=r"broker: mosquitto ended with 3 \(see .*broker\.log\): no such option"
    ):
        BrokerProcess(tmp_path / "state", kind="mosquitto").start()


def test_what_listens_but_is_no_broker_does_not_answer():
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert not answers(server.getsockname()[1], 0.2)
    assert not answers(1, 0.2)


def test_start_need_not_wait(tmp_path):
    broker = BrokerProcess(tmp_path, kind="amqtt")
    began = time.monotonic()
    broker.start(wait_s=0)
    assert not answers(broker.port) or time.monotonic() > began
    eventually(lambda: answers(broker.port), 30)
    broker.stop()


def test_free_port_lies_below_where_the_kernel_draws_source_ports():
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = {free_port() for _ in range(50)}
    assert len(ports) > 40
    assert all(1024 < port < max(low, 32_767) for port in ports)


def test_configuration_bounds_every_queue_and_keeps_nothing():
    lines = mosquitto_configuration(1883).splitlines()
    assert "listener 1883 127.0.0.1" in lines
    assert "persistence false" in lines
    options = {line.split()[0]: line.split()[1] for line in lines if line and not line.startswith("#")}
    for bound in ("max_inflight_messages", "max_queued_messages", "max_queued_bytes", "message_size_limit"):
        assert int(options[bound]) > 0


@pytest.mark.parametrize("arguments", [[], ["port"]])
def test_embedded_broker_says_how_it_is_used(arguments):
    done = subprocess.run(
        [sys.executable, "-m", "skerry.broker", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (78, "usage: python -m skerry.broker PORT\n")
