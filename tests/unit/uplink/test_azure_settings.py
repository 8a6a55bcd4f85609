"""What may be set of the Azure link, and what is said of it where its client is missing."""

import importlib.util
import math
from typing import Any

import pytest

from skerry.errors import ConfigError
from skerry.settings import parse
from skerry.uplink.limits import PRESETS, Bounds
from skerry.uplink.links import make
from skerry.uplink.settings import AzureLink, EdgeIdentity, UplinkSettings

STRING = {"kind": "connection-string", "connection_string_file": "cs"}
X509 = {"kind": "x509", "hub": "h.azure-devices.net", "device": "gate", "certificate": "c", "key": "k"}


def uplink(**link: Any) -> UplinkSettings:
    raw = {"site": "s", "module": "uplink", "state": "/tmp/none", "link": {"kind": "azure", **link}}
    return parse(UplinkSettings, raw, "test")


def test_nothing_need_be_said_as_a_module_of_iot_edge() -> None:
    link = uplink().link
    assert isinstance(link, AzureLink)
    assert link.identity == EdgeIdentity()


@pytest.mark.parametrize(
    ("link", "bounds"),
    [
        ({}, Bounds()),
        ({"identity": STRING}, PRESETS["azure-iot-hub-s1"]),
        ({"identity": X509}, PRESETS["azure-iot-hub-s1"]),
        ({"identity": X509, "gateway": "edge"}, Bounds()),
    ],
)
def test_the_limits_are_those_of_a_hub_unless_an_edge_hub_is_between(link, bounds) -> None:
    assert uplink(**link).bounds == bounds
    assert math.isinf(Bounds().messages_per_s)


@pytest.mark.parametrize(
    ("link", "says"),
    [
        ({"gateway": "edge"}, "expected neither with identity: auto"),
        ({"ca": "ca.pem"}, "expected neither with identity: auto"),
        ({"identity": X509, "outputs": True}, "expected a gateway with it"),
        ({"identity": STRING, "gateway": "edge"}, "GatewayHostName in the connection string"),
        ({"proxy": "socks5://x:1"}, "proxy: expected http://host"),
        ({"proxy": "http://user:password@x:1"}, "without a login"),
        ({"identity": {"kind": "sas"}}, "expected one of"),
        ({"identity": {**X509, "hub": "https://h"}}, "expected text that matches"),
        ({"token_s": 60}, "from 300 to"),
        ({"keepalive_s": 1741}, "from 5 to 1740"),
    ],
)
def test_what_does_not_go_together_is_refused(link, says) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        uplink(**link)
    assert "password" not in str(error.value).replace("password_file", "")


@pytest.mark.skipif(importlib.util.find_spec("azure") is not None, reason="it is there")
def test_a_missing_client_is_said_to_be_and_how_to_get_it() -> None:
    import threading

    with pytest.raises(ConfigError, match=r"expected the package azure-iot-device.*uplink-azure\.txt"):
        make(uplink(identity=STRING), threading.Event())
