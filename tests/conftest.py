"""Fixtures that more than one folder of tests uses."""

import itertools
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
