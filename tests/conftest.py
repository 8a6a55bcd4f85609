"""Fixtures that more than one folder of tests uses, and which tests stay together in a parallel run."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

import needs
from skerry.broker import BrokerProcess

_numbers = itertools.count(1)

# A change is judged by the same examples every time; everybody else's runs go on looking for new ones.
hypothesis.settings.register_profile("judge", derandomize=True)
if needs.FORBIDDEN:
    hypothesis.settings.load_profile("judge")


TOGETHER = (
    r"acceptance/test_demo\.py::TestAMinuteOfBelt.*(\[seed\d+\])",
    r"(acceptance/test_real_input\.py|integration/test_inference_real\.py)::",
    r"(integration/test_delivery_attacks\.py)::",
)
"""Tests that share what takes long to make: one worker makes it, once. What matches is their name."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Hand out tests one by one, but for those that stay together.

    The mark `xdist_group` would do, but has no effect with pytest 9.2 (pytest-xdist issue 1386).
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            found = (re.search(pattern, nodeid) for pattern in TOGETHER)
            return next((match[1] for match in found if match), nodeid)

    return Scheduler(config, log)


@pytest.fixture(scope="session")
def shared_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """One Mosquitto for the whole session; tests keep apart by `unique_site` and never kill it."""
    with BrokerProcess(tmp_path_factory.mktemp("broker"), kind="mosquitto") as process:
        yield process


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    """A Mosquitto of the test's own, to kill and restart."""
    with BrokerProcess(tmp_path / "broker", kind="mosquitto") as process:
        yield process


@pytest.fixture
def unique_site() -> str:
    """A site name that no other test of this session uses."""
    return f"site-{next(_numbers)}"
