"""What needs Microsoft's client runs only where that is: `../test_uplink_azure.py` sees to it."""

import importlib.util
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from iot_hub import IotHub
from skerry.uplink import settings as given
from skerry.uplink.downlink import Downlink
from skerry.uplink.links.azure import AzureLink

collect_ignore_glob = [] if importlib.util.find_spec("azure") else ["test_*.py"]


def pytest_configure(config: pytest.Config) -> None:
    if not collect_ignore_glob:
        config.addinivalue_line(
            "filterwarnings", "ignore:ssl.PROTOCOL_TLSv1_2"
        )  # how the client makes contexts


@pytest.fixture
def hub(tmp_path) -> Iterator[IotHub]:
    hub = IotHub(tmp_path)
    hub.start()
    yield hub
    hub.stop()


Connect = Callable[..., AzureLink]


@pytest.fixture
def connect(tmp_path) -> Iterator[Connect]:
    """Makes links to a hub, by the connection string of a device unless told otherwise; not open."""
    links: list[AzureLink] = []

    def make(
        hub: IotHub, identity: given.AzureIdentity | None = None, downlink: Downlink | None = None,
        stop: threading.Event | None = None, **options: Any,
    ) -> AzureLink:  # fmt: skip
        if identity is None:
            file = hub.connection_string(tmp_path)
            identity = given.ConnectionStringIdentity(connection_string_file=str(file))
        if not isinstance(identity, given.EdgeIdentity):
            options.setdefault("ca", str(hub.authority.ca))
        options.setdefault("timeout_s", 5.0)
        settings = given.AzureLink(identity=identity, **options)
        links.append(AzureLink(settings, "here", tmp_path, stop or threading.Event(), downlink=downlink))
        return links[-1]

    yield make
    for link in links:
        link.close()
