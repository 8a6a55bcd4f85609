"""What holds a fast source back."""

from __future__ import annotations

import threading
import time

import pytest

from skerry.capture.window import CONSUMERS, Consumers, Window
from skerry.messages import Status


def test_there_is_room_until_the_window_is_full():
    window = Window(2, wait_s=60)
    window.sent(1)
    assert window.room(0)
    window.sent(2)
    assert not window.room(0)


def test_a_result_makes_room_for_all_frames_up_to_its_number():
    window = Window(2, wait_s=60)
    window.sent(1)
    window.sent(2)
    window.resolved(2)
    assert len(window) == 0
    assert window.room(0)


def test_a_result_of_an_earlier_life_makes_no_room():
    window = Window(1, wait_s=60)
    window.sent(10)
    window.resolved(9)
    assert not window.room(0)


def test_a_waiting_source_goes_on_as_soon_as_the_result_is_there():
    window = Window(1, wait_s=60)
    window.sent(1)
    threading.Timer(0.05, window.resolved, (1,)).start()
    began = time.monotonic()
    assert window.room(30)
    assert time.monotonic() - began < 20


def test_a_frame_without_a_result_is_given_up_and_counted():
    window = Window(1, wait_s=0.05)
    window.sent(1)
    assert window.room(30)
    assert window.overdue == 1


def status(state: str, module: str = "inference", kind: str = "inference") -> Status:
    return Status(module=module, kind=kind, state=state)


@pytest.mark.parametrize("last", CONSUMERS)
def test_frames_are_held_until_whoever_needs_them_is_ready(last):
    consumers = Consumers(wait_s=60)
    for kind in set(CONSUMERS) - {last}:
        consumers.note(status("ready", kind, kind))
    consumers.note(status("ready", "buffer", "buffer"))
    consumers.note(status("starting", last, last))
    assert not consumers.expected()
    consumers.note(status("ready", last, last))
    assert consumers.expected()


@pytest.mark.parametrize("kind", CONSUMERS)
def test_frames_are_held_while_one_of_them_is_being_restarted(kind):
    consumers = Consumers(wait_s=0)
    consumers.note(status("ready", kind, kind))
    consumers.note(status("lost", kind, kind))
    assert not consumers.expected()
    consumers.note(status("degraded", kind, kind))
    assert consumers.expected()


def test_without_inference_frames_go_out_after_a_while():
    assert Consumers(wait_s=0).expected()
