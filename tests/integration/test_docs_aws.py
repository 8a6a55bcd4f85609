"""What docs/aws.md tells an operator to allow is what the links need: all of it, and no more."""

import json
import re
import threading
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

import pytest
import yaml

import authority
import needs
from greengrass_ipc import Nucleus
from mqtt5_peer import Peer
from records import record
from skerry.errors import LinkDown
from skerry.messages import LANES
from skerry.settings import TlsSettings, parse
from skerry.testing import eventually
from skerry.uplink import settings as given
from skerry.uplink.downlink import Downlink, Request
from skerry.uplink.links.aws import AwsLink
from skerry.uplink.links.greengrass import GreengrassLink
from skerry.uplink.links.greengrass_ipc import Nucleus as Where

PAGE = (needs.ROOT / "docs" / "aws.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
REMOTE = "skerry/demo/remote"
THING = "${iot:Connection.Thing.ThingName}"


def blocks(language: str, having: str) -> list[Any]:
    """The parsed blocks of a language that contain something."""
    load = json.loads if language == "json" else yaml.safe_load
    return [load(text) for kind, text in BLOCKS if kind == language and having in text]


# IoT Core


def allowed(policy: dict[str, Any], action: str) -> list[str]:
    """Resources of an action, without account, and with the thing's name in them."""
    found = []
    for statement in policy["Statement"]:
        actions = statement["Action"]
        if action in (actions if isinstance(actions, list) else [actions]):
            resources = statement["Resource"]
            found += resources if isinstance(resources, list) else [resources]
    return [re.sub(r"^arn:aws:iot:REGION:ACCOUNT:", "", one).replace(THING, "gate-3") for one in found]


def covers(resources: list[str], used: set[str]) -> None:
    """Every use is allowed, and every resource is used."""
    for one in used:
        assert any(fnmatchcase(one, resource) for resource in resources), f"{one} is not allowed"
    for resource in resources:
        assert any(fnmatchcase(one, resource) for one in used), f"{resource} is not needed"


@needs.mosquitto
def test_the_policy_of_a_device_allows_what_the_link_does_and_no_more(tmp_path) -> None:
    (policy,) = blocks("json", "shadow/name/skerry/update")
    keys = authority.make(tmp_path)
    with Peer(keys) as peer:
        tls = TlsSettings(ca=f"{keys}/ca.pem", certificate=f"{keys}/client.pem", key=f"{keys}/client.key")
        settings = given.AwsLink(endpoint="localhost", port=peer.port, tls=tls, client_id="gate-3")
        downlink = Downlink()
        link = AwsLink(settings, "demo", "uplink", threading.Event(), downlink=downlink)
        link.open()
        eventually(lambda: len(peer.subscribed) == 2)
        for n, lane in enumerate(LANES):
            link.send([record(n + 1, lane=lane)])
        steering = link._steering
        assert steering is not None
        steering.message(f"{REMOTE}/requests/ping", b"{}", retained=False)
        downlink.take(1)[1][0].reply(200, b"{}")
        steering.message(
            "$aws/things/gate-3/shadow/name/skerry/get/accepted",
            b'{"state": {}, "version": 1}',
            retained=False,
        )
        with pytest.raises(LinkDown):
            link.report({"a": 1}, 0.3)
        eventually(lambda: len({message.topic for message in peer.got}) == 7)
        published = {message.topic for message in peer.got}
        filters = {name for names in peer.subscribed for name in names}
        clients = {name for _, _, name in peer.connects}
        link.close()
    covers(allowed(policy, "iot:Connect"), {f"client/{name}" for name in clients})
    covers(allowed(policy, "iot:Publish"), {f"topic/{topic}" for topic in published})
    covers(allowed(policy, "iot:Subscribe"), {f"topicfilter/{name}" for name in filters})
    covers(allowed(policy, "iot:Receive"), {f"topic/{name.replace('+', 'ping')}" for name in filters})
    assert sum(map(len, peer.subscribed)) == 7


@needs.mosquitto
def test_the_policy_of_a_claim_allows_what_provisioning_does_and_no_more() -> None:
    (policy,) = blocks("json", "certificates/create/json*")
    asked = ("$aws/certificates/create/json", "$aws/provisioning-templates/skerry/provision/json")
    answers = {f"{topic}/{end}" for topic in asked for end in ("accepted", "rejected")}
    covers(allowed(policy, "iot:Connect"), {"client/skerry-demo-uplink"})
    covers(allowed(policy, "iot:Publish"), {f"topic/{topic}" for topic in asked})
    covers(allowed(policy, "iot:Receive"), {f"topic/{topic}" for topic in answers})
    covers(allowed(policy, "iot:Subscribe"), {f"topicfilter/{topic}" for topic in answers})


@pytest.mark.parametrize("block", blocks("yaml", "kind: "), ids=lambda block: block["link"]["kind"])
def test_the_site_files_are_good(block) -> None:
    parse(given.Link, block["link"], "docs/aws.md")  # type: ignore[arg-type]  # a union is a type to it


def test_the_template_names_the_policy_that_is_made() -> None:
    (template,) = blocks("json", "AWS::IoT::Thing")
    name = template["Resources"]["policy"]["Properties"]["PolicyName"]
    assert f"create-policy --policy-name {name} " in PAGE
    (block,) = blocks("yaml", "claim_key")
    assert set(block["link"]["provisioning"]["parameters"]) == {"SerialNumber"} <= set(template["Parameters"])


# Greengrass


def access() -> dict[str, list[str]]:
    """The accessControl of the page, shadows included: operation to resources."""
    (recipe,) = blocks("yaml", "DefaultConfiguration")
    (more,) = blocks("yaml", "{iot:thingName}")
    found: dict[str, list[str]] = {}
    services = [
        *recipe["ComponentConfiguration"]["DefaultConfiguration"]["accessControl"].values(),
        *more.values(),
    ]
    for service in services:
        for policy in service.values():
            for operation in policy["operations"]:
                name = operation.removeprefix("aws.greengrass#")
                found.setdefault(name, []).extend(
                    resource.replace("{iot:thingName}", "gate-3") for resource in policy["resources"]
                )
    return found


@pytest.fixture
def nucleus() -> Iterator[Nucleus]:
    with Nucleus() as nucleus:
        nucleus.configuration = {"desired": {}}
        yield nucleus


def problems(nucleus: Nucleus) -> list[str]:
    """What does not work when everything is done once, in all ways."""
    return [
        *attempt(nucleus, given.GreengrassLink(timeout_s=5.0)),
        *attempt(nucleus, given.GreengrassLink(desired="shadow", reported="shadow", timeout_s=5.0)),
    ]


def attempt(nucleus: Nucleus, settings: given.GreengrassLink) -> list[str]:
    """What does not work in one way."""
    found = []
    downlink = Downlink()
    where = Where(nucleus.environment)
    link = GreengrassLink(settings, "demo", threading.Event(), downlink=downlink, nucleus=where)
    for n, lane in enumerate(LANES):
        try:
            link.open()
            link.send([record(n + 1, lane=lane)])
        except LinkDown as error:
            found.append(str(error))
    try:
        link.open()
        link.report({"at": time.monotonic()}, 5.0)
    except LinkDown as error:
        found.append(str(error))
    nucleus.say(f"{REMOTE}/requests/ping", b"{}")
    nucleus.send(f"{REMOTE}/requests/ping", b"{}")
    requests: list[Request] = []
    eventually(lambda: link.trouble or requests.extend(downlink.take(0.01)[1]) or len(requests) == 2)
    before = len(nucleus.local) + len(nucleus.cloud)
    for request in requests:
        request.reply(200, b"{}")
    eventually(lambda: link.trouble or len(nucleus.local) + len(nucleus.cloud) == before + len(requests))
    found += [link.trouble] if link.trouble else []
    link.close()
    return found


def test_the_recipe_allows_what_the_link_does(nucleus) -> None:
    nucleus.allow = access()
    assert problems(nucleus) == []


@pytest.mark.parametrize(
    ("operation", "resource"), [(name, one) for name, resources in access().items() for one in resources]
)
def test_without_any_line_of_the_recipe_the_link_names_what_is_missing(nucleus, operation, resource) -> None:
    nucleus.allow = access()
    nucleus.allow[operation].remove(resource)
    found = problems(nucleus)
    assert any(f"allow aws.greengrass#{operation} for " in problem for problem in found), found
