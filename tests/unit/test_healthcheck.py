"""The health command of the images, against the real endpoints."""

import socket
import threading

import pytest

import needs
from skerry.broker import BrokerProcess, free_port
from skerry.healthcheck import main, problem


def answering(payload: bytes) -> int:
    """The port of one who takes one connection, says this, and hangs up."""
    server = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        with server, server.accept()[0] as connection:
            connection.recv(1024)
            connection.sendall(payload)

    threading.Thread(target=answer, daemon=True).start()
    return int(server.getsockname()[1])


def test_a_living_module_is_well(capsys):
    assert main([str(answering(b"HTTP/1.0 200 OK\r\n\r\nalive\n"))]) == 0
    assert capsys.readouterr().err == ""


def test_a_stalled_module_is_not_and_the_reason_is_said(capsys):
    assert main([str(answering(b"HTTP/1.0 503 Service Unavailable\r\n\r\nmain loop stalled\n"))]) == 1
    assert capsys.readouterr().err == "main loop stalled\n"


def test_nobody_there_is_not_well(capsys):
    assert main([str(free_port())]) == 1
    assert "refused" in capsys.readouterr().err


def test_one_who_listens_and_says_nothing_is_not_well():
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert "timed out" in problem(mqtt=False, port=server.getsockname()[1], timeout_s=0.05)


@pytest.mark.parametrize("answer", ["20020000", "20020005"])
def test_a_broker_that_answers_is_well_whether_it_lets_us_in_or_not(answer):
    assert main(["--mqtt", str(answering(bytes.fromhex(answer)))]) == 0


@pytest.mark.parametrize("answer", ["", "2002", "d0000000"])
def test_a_broker_that_says_anything_else_is_not(answer):
    assert main(["--mqtt", str(answering(bytes.fromhex(answer)))]) == 1


@needs.mosquitto
def test_mosquitto_is_well(tmp_path):
    with BrokerProcess(tmp_path, kind="mosquitto") as broker:
        assert main(["--mqtt", str(broker.port)]) == 0


def test_a_port_that_is_none_is_said(capsys):
    assert main(["soon"]) == 1
    assert "usage" in capsys.readouterr().err
