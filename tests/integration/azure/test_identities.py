"""Each way of proving who we are to Azure, and what is said when it cannot be."""

import threading
import time

import pytest

from authority import Authority
from iot_hub import KEY, IotHub, WorkloadApi
from records import record, records
from skerry.errors import ConfigError, LinkDown
from skerry.testing import eventually
from skerry.uplink import settings as given
from skerry.uplink.links.azure import AzureLink
from skerry.uplink.links.azure_identity import derived


def sent_by(hub, link) -> str:
    """Who the hub takes us for."""
    before = len(hub.messages)
    link.open()
    link.send(records(1, 3))
    eventually(lambda: len(hub.messages) > before)
    return hub.messages[-1].device


@pytest.mark.parametrize(("module", "name"), [("", "gate"), ("uplink", "gate/uplink")])
def test_a_certificate(tmp_path, connect, module, name) -> None:
    hub = IotHub(tmp_path, mutual=True)
    hub.start()
    certificate, key = hub.authority.issue("gate")
    by = given.CertificateIdentity(
        hub=hub.host, device="gate", module=module, certificate=str(certificate), key=str(key)
    )
    assert sent_by(hub, connect(hub, by)) == name
    hub.stop()


def test_a_certificate_through_a_gateway(tmp_path, connect) -> None:
    hub = IotHub(tmp_path, mutual=True)
    hub.start()
    certificate, key = hub.authority.issue("gate")
    by = given.CertificateIdentity(
        hub="far.azure-devices.net", device="gate", module="m", certificate=str(certificate), key=str(key)
    )
    link = connect(hub, by, gateway=hub.host, outputs=True)
    assert sent_by(hub, link) == "gate/m"
    assert hub.messages[0].properties["$.on"] == "event"
    hub.stop()


@pytest.mark.parametrize(
    ("more", "name"), [({}, "gate"), ({"ModuleId": "m"}, "gate/m"), ({"GatewayHostName": "HOST"}, "gate")]
)
def test_a_connection_string(hub, connect, tmp_path, more, name) -> None:
    more = {key: value.replace("HOST", hub.host) for key, value in more.items()}
    file = hub.connection_string(tmp_path, **more)
    by = given.ConnectionStringIdentity(connection_string_file=str(file))
    assert sent_by(hub, connect(hub, by)) == name


def test_a_connection_string_is_read_again_when_it_changes(hub, connect, tmp_path) -> None:
    file = hub.connection_string(tmp_path)
    link = connect(hub, given.ConnectionStringIdentity(connection_string_file=str(file)))
    assert sent_by(hub, link) == "gate"
    hub.connection_string(tmp_path, device="yard")
    assert sent_by(hub, link) == "yard"
    file.write_text("HostName=half wri")
    assert sent_by(hub, link) == "yard"


def test_a_new_key_makes_a_new_connection_and_half_a_file_does_not(hub, connect, tmp_path) -> None:
    file = hub.connection_string(tmp_path)
    link = connect(hub, given.ConnectionStringIdentity(connection_string_file=str(file)))
    link.open()
    link.send(records(1, 3))
    good = file.read_text()
    file.write_text(good[:20])
    until = time.monotonic() + 2.5
    while time.monotonic() < until:
        assert not link.finish(0.05)
    file.write_text(good.replace("DeviceId=gate", "DeviceId=other"))
    with pytest.raises(LinkDown, match="have changed"):
        eventually(lambda: link.finish(0.05))
    link.open()
    link.send(records(4, 6))
    eventually(lambda: [m.device for m in hub.messages] == ["gate", "other"])


def test_a_new_certificate_makes_a_new_connection(tmp_path, connect) -> None:
    hub = IotHub(tmp_path, mutual=True)
    hub.start()
    certificate, key = hub.authority.issue("gate")
    by = given.CertificateIdentity(hub=hub.host, device="gate", certificate=str(certificate), key=str(key))
    link = connect(hub, by)
    link.open()
    link.send(records(1, 3))
    hub.authority.issue("gate")
    with pytest.raises(LinkDown, match="have changed"):
        eventually(lambda: link.finish(0.05))
    link.open()
    link.send(records(4, 6))
    hub.stop()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected one line of visible ASCII"),
        ("two\nlines", "expected one line of visible ASCII"),
        ("no string", "expected NAME=VALUE;..., got something else"),
        (f"HostName=h;SharedAccessKey={KEY}", "expected DeviceId in it, got none"),
        (f"HostName=h;SharedAccessKeyName=iothubowner;DeviceId=d;SharedAccessKey={KEY}", "expected only"),
        ("HostName=h;DeviceId=d;SharedAccessKey=n0t-base64!", "expected a key in base64"),
    ],
)
def test_a_connection_string_that_is_none_is_named_and_not_shown(tmp_path, text, says) -> None:
    file = tmp_path / "string"
    file.write_text(text)
    settings = given.AzureLink(identity=given.ConnectionStringIdentity(connection_string_file=str(file)))
    with pytest.raises(ConfigError, match=f"link.identity.connection_string_file: {file}: {says}") as error:
        AzureLink(settings, "here", tmp_path, threading.Event())
    assert KEY not in str(error.value)
    assert "n0t" not in str(error.value)


def test_files_that_are_missing_or_no_good_are_named(tmp_path) -> None:
    certificate, key = Authority(tmp_path).issue("gate")
    (tmp_path / "bad.pem").write_text("nothing")

    def link(ca: str, certificate: str) -> AzureLink:
        by = given.CertificateIdentity(hub="h", device="d", certificate=certificate, key=str(key))
        return AzureLink(given.AzureLink(identity=by, ca=ca), "here", tmp_path, threading.Event())

    with pytest.raises(ConfigError, match=r"link.ca: .*bad.pem: expected PEM certificates"):
        link(str(tmp_path / "bad.pem"), str(certificate))
    with pytest.raises(
        ConfigError, match=r"link.identity.certificate: .*bad.pem .*expected a PEM certificate"
    ):
        link("", str(tmp_path / "bad.pem"))


# IoT Edge


@pytest.fixture
def edge(hub, tmp_path, monkeypatch):
    api = WorkloadApi(tmp_path, hub.authority.ca)
    for name, value in api.environment("far.azure-devices.net", hub.host).items():
        monkeypatch.setenv(name, value)
    yield api
    api.stop()


def test_a_module_of_iot_edge(hub, connect, edge) -> None:
    link = connect(hub, given.EdgeIdentity())
    assert sent_by(hub, link) == "box/uplink"
    assert hub.messages[0].properties["$.on"] == "event"
    link.send([record(9, lane="alarm")])
    eventually(lambda: len(hub.messages) == 2)
    assert hub.messages[1].properties["$.on"] == "alarm"
    assert edge.signed[0].startswith("far.azure-devices.net%2Fdevices%2Fbox%2Fmodules%2Fuplink\n")


def test_a_module_of_iot_edge_without_outputs(hub, connect, edge) -> None:
    assert sent_by(hub, connect(hub, given.EdgeIdentity(), outputs=False)) == "box/uplink"
    assert "$.on" not in hub.messages[0].properties


def test_a_workload_api_that_is_not_there_is_said_to_be(hub, connect, edge) -> None:
    edge.stop()
    edge.path.unlink()
    with pytest.raises(LinkDown, match=r"azure: cannot connect"):
        connect(hub, given.EdgeIdentity()).open()


def test_an_environment_that_is_not_iot_edges_is_said_to_be(hub, connect, monkeypatch) -> None:
    monkeypatch.delenv("IOTEDGE_WORKLOADURI", raising=False)
    with pytest.raises(LinkDown, match="expected the environment of an IoT Edge module"):
        connect(hub, given.EdgeIdentity()).open()


# Provisioning


def by_key(hub, tmp_path, **options) -> given.DpsKeyIdentity:
    (tmp_path / "key").write_text(KEY)
    return given.DpsKeyIdentity(
        scope="0ne0", registration="gate-1", key_file=str(tmp_path / "key"), host=hub.host, **options
    )


@pytest.mark.parametrize("group", [False, True])
def test_a_provisioning_service_with_a_key(hub, connect, tmp_path, group) -> None:
    hub.assignments["gate-1"] = (hub.host, "gate-one")
    assert sent_by(hub, connect(hub, by_key(hub, tmp_path, group=group))) == "gate-one"
    assert hub.registrations == ["gate-1"]


def test_a_provisioning_service_that_takes_its_time(hub, connect, tmp_path) -> None:
    hub.polls_first = True
    hub.assignments["gate-1"] = (hub.host, "gate-one")
    assert sent_by(hub, connect(hub, by_key(hub, tmp_path), timeout_s=15.0)) == "gate-one"


def test_a_provisioning_service_with_a_certificate(tmp_path, connect) -> None:
    hub = IotHub(tmp_path, mutual=True)
    hub.start()
    hub.assignments["gate-1"] = (hub.host, "gate-one")
    certificate, key = hub.authority.issue("gate-1")
    by = given.DpsCertificateIdentity(
        scope="0ne0", registration="gate-1", certificate=str(certificate), key=str(key), host=hub.host
    )
    assert sent_by(hub, connect(hub, by)) == "gate-one"
    hub.stop()


def test_an_assignment_is_remembered_over_a_restart_without_the_service(hub, connect, tmp_path) -> None:
    hub.assignments["gate-1"] = (hub.host, "gate-one")
    by = by_key(hub, tmp_path)
    sent_by(hub, connect(hub, by))
    hub.assignments.clear()
    assert sent_by(hub, connect(hub, by)) == "gate-one"
    assert hub.registrations == ["gate-1"]
    other = given.DpsKeyIdentity(scope="0ne0", registration="other", key_file=by.key_file, host=hub.host)
    with pytest.raises(LinkDown):
        connect(hub, other).open()
    assert hub.registrations == ["gate-1", "other"]


def test_an_assignment_is_asked_for_again_when_its_hub_stays_away(hub, connect, tmp_path) -> None:
    """Not each time: in an outage that would only keep us from the hub."""
    hub.assignments["gate-1"] = ("127.77.255.254", "gate-one")
    link = connect(hub, by_key(hub, tmp_path))
    for _ in range(5):
        with pytest.raises(LinkDown, match=r"127\.77\.255\.254"):
            link.open()
    assert hub.registrations == ["gate-1"]
    hub.assignments["gate-1"] = (hub.host, "gate-two")
    assert sent_by(hub, link) == "gate-two"


def test_an_assignment_is_asked_for_again_when_its_hub_knows_us_no_more(hub, connect, tmp_path) -> None:
    former = IotHub(tmp_path / "former", refuses=True)
    former.start()
    hub.assignments["gate-1"] = (former.host, "gate-one")
    link = connect(hub, by_key(hub, tmp_path), ca=str(trusting_both(tmp_path, hub, former)))
    with pytest.raises(LinkDown, match="not authorised"):
        link.open()
    hub.assignments["gate-1"] = (hub.host, "gate-two")
    assert sent_by(hub, link) == "gate-two"
    former.stop()


def trusting_both(folder, *hubs: IotHub):
    """A file with the authorities of several hubs."""
    file = folder / "both.pem"
    file.write_text("".join(hub.authority.ca.read_text() for hub in hubs))
    return file


def test_a_device_that_is_not_enrolled_is_said_to_be(hub, connect, tmp_path) -> None:
    with pytest.raises(LinkDown, match=f"{hub.host}: .*401"):
        connect(hub, by_key(hub, tmp_path)).open()


def test_a_silent_provisioning_service_is_given_up_in_time(hub, connect, tmp_path) -> None:
    hub.freeze()
    with pytest.raises(LinkDown, match=r"no assignment within 0\.5 s"):
        connect(hub, by_key(hub, tmp_path), timeout_s=0.5).open()


def test_the_key_of_a_device_is_derived_from_that_of_its_group() -> None:
    """HMAC-SHA256 of the registration ID: with openssl,

    printf gate-1 | openssl dgst -sha256 -hmac S3cret-of-the-device-that-nobody-sees -binary | base64
    """
    assert derived(KEY, "gate-1") == "LRQOz471B+jVDzK69TSAyqNfMBiA6PV3tt3GU2jTEzQ="
