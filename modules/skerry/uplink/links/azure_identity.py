"""Who we are to IoT Hub, by reference: what makes Microsoft's client for each way of proving it."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import structlog

from skerry import durable
from skerry.errors import ConfigError, LinkDown
from skerry.mqtt import tls_context
from skerry.settings import TlsSettings
from skerry.uplink import settings as given
from skerry.uplink.credentials import Watched
from skerry.uplink.links.azure_client import Sdk, explain, let_go

_MOST_BYTES = 64 * 1024
_DOUBT_AFTER = 5
"""Attempts without a connection, after which a provisioning service is asked again."""

log = structlog.get_logger()
Make = Callable[[], Any]
"""Makes a client; may take its time."""


class Assignment(msgspec.Struct, frozen=True):
    """What a provisioning service has said."""

    scope: str
    registration: str
    hub: str
    device: str


class Identity:
    """One way of proving who we are. Files are looked at again each time.

    Args:
        sdk: the package.
        link: the settings.
        state: folder for what a provisioning service says.

    Raises:
        ConfigError: a file cannot be read, or is not what it should be.
    """

    def __init__(self, sdk: Sdk, link: given.AzureLink, state: Path) -> None:
        self._sdk = sdk
        self._link = link
        self._state = state / "azure-assignment.json"
        identity = link.identity
        self._string: Watched[dict[str, str]] | None = None
        self._key: Watched[str] | None = None
        self._doubt = False
        self._failures = 0
        self.proof = "what the workload API signs"
        self.trust = f"link.ca {link.ca}" if link.ca else "the authorities of the system (or set link.ca)"
        match identity:
            case given.ConnectionStringIdentity(connection_string_file=file):
                self.proof = f"link.identity.connection_string_file {file}"
                self._string = Watched([file], lambda: connection_string(file))
            case given.DpsKeyIdentity(key_file=file):
                self.proof = f"link.identity.key_file {file}"
                self._key = Watched([file], lambda: shared_key(file))
            case given.CertificateIdentity() | given.DpsCertificateIdentity():
                self.proof = f"link.identity.certificate {identity.certificate}"
            case given.EdgeIdentity():
                self.trust = "the trust bundle of IoT Edge"
        self._all = Watched(self._named(), self._look)

    @property
    def version(self) -> int:
        """Goes up when a file has changed, and what is in all of them is good."""
        self._all.get()
        return self._all.version

    @property
    def outputs(self) -> bool:
        """Whether each lane has an output: an edgeHub is in between, and was not told otherwise."""
        if self._link.outputs is None:
            return isinstance(self._link.identity, given.EdgeIdentity)
        return self._link.outputs

    @property
    def module(self) -> bool:
        """Whether we are a module: a device has no outputs."""
        identity = self._link.identity
        if self._string is not None:
            return "ModuleId" in self._string.get()
        return isinstance(identity, given.EdgeIdentity) or bool(getattr(identity, "module", ""))

    def ready(self, timeout_s: float, stop: threading.Event) -> Make:
        """What makes the next client. Waits for a provisioning service, where one must be asked.

        Raises:
            LinkDown: it says nothing, or no; or a file is half written.
        """
        try:
            common = self._files()
        except ConfigError as error:
            raise LinkDown(str(error)) from error
        device, link = self._sdk.device, self._link
        token = {"sastoken_ttl": link.token_s}
        gateway = {"gateway_hostname": link.gateway} if link.gateway else {}
        match link.identity:
            case given.EdgeIdentity():
                common.pop("server_verification_cert", None)
                return partial(_from_edge, device, {**common, **token})
            case given.ConnectionStringIdentity():
                assert self._string is not None
                found = self._string.get()
                text = ";".join(f"{name}={value}" for name, value in found.items())
                kind = device.IoTHubModuleClient if "ModuleId" in found else device.IoTHubDeviceClient
                return partial(kind.create_from_connection_string, text, **common, **token)
            case given.CertificateIdentity() as by:
                x509 = device.X509(by.certificate, by.key)
                if by.module:
                    made = device.IoTHubModuleClient.create_from_x509_certificate
                    return partial(made, x509, by.hub, by.device, by.module, **common, **gateway)
                made = device.IoTHubDeviceClient.create_from_x509_certificate
                return partial(made, x509, by.hub, by.device, **common, **gateway)
            case given.DpsKeyIdentity() | given.DpsCertificateIdentity() as by:
                return self._provisioned(by, {**common, **gateway}, timeout_s, stop)

    def refused(self, *, unknown: bool) -> None:
        """No connection: what a provisioning service said may be old.

        Args:
            unknown: the hub is there, and does not know us. Else it is as likely an outage, in which asking
                the service each time would only keep us from the hub.
        """
        self._failures += 1
        self._doubt = self._doubt or unknown or self._failures % _DOUBT_AFTER == 0

    def _named(self) -> list[str]:
        """The files that the settings name."""
        fields = ("certificate", "key", "connection_string_file", "key_file")
        found = [self._link.ca, *(getattr(self._link.identity, field, "") for field in fields)]
        return [file for file in found if file]

    def _look(self) -> None:
        """Look at all of them.

        Raises:
            ConfigError: one is not good.
        """
        self._files()
        match self._link.identity:
            case given.ConnectionStringIdentity(connection_string_file=file):
                connection_string(file)
            case given.DpsKeyIdentity(key_file=file):
                shared_key(file)

    def _files(self) -> dict[str, Any]:
        """What all kinds of clients are told, from files that are good.

        Raises:
            ConfigError: one is not.
        """
        link, identity = self._link, self._link.identity
        certificate, key = getattr(identity, "certificate", ""), getattr(identity, "key", "")
        try:
            tls_context(TlsSettings(ca=link.ca, certificate=certificate, key=key))
        except ConfigError as error:
            places = ("link.identity", "link")
            raise ConfigError(
                [p.replace("tls", places[p.startswith("tls.ca")], 1) for p in error.problems]
            ) from error
        common: dict[str, Any] = {
            "websockets": link.websockets,
            "keep_alive": link.keepalive_s,
            "auto_connect": False,
            "connection_retry": False,
            "ensure_desired_properties": False,
        }
        if link.ca:
            common["server_verification_cert"] = Path(link.ca).read_text(encoding="utf-8")
        if link.proxy:
            proxy = urlsplit(link.proxy)
            common["proxy_options"] = self._sdk.device.ProxyOptions(
                "HTTP", proxy.hostname, proxy.port or 8080
            )
        return common

    # Provisioning

    def _provisioned(
        self, by: given.DpsKeyIdentity | given.DpsCertificateIdentity, common: dict[str, Any],
        timeout_s: float, stop: threading.Event,
    ) -> Make:  # fmt: skip
        known = self._remembered(by.scope, by.registration)
        if known is None or self._doubt:
            self._doubt = False
            try:
                known = self._register(by, timeout_s, stop)
            except LinkDown as error:
                if known is None:
                    raise
                log.warning("azure.not_provisioned", error=str(error), hub=known.hub)
            else:
                durable.replace(self._state, msgspec.json.encode(known))
                log.info("azure.provisioned", hub=known.hub, device=known.device)
        hub, name = known.hub, known.device
        client = self._sdk.device.IoTHubDeviceClient
        if isinstance(by, given.DpsCertificateIdentity):
            x509 = self._sdk.device.X509(by.certificate, by.key)
            return partial(client.create_from_x509_certificate, x509, hub, name, **common)
        key, token_s = self._device_key(by), self._link.token_s
        return partial(client.create_from_symmetric_key, key, hub, name, **common, sastoken_ttl=token_s)

    def _remembered(self, scope: str, registration: str) -> Assignment | None:
        try:
            known = msgspec.json.decode(self._state.read_bytes(), type=Assignment)
        except (OSError, msgspec.DecodeError):
            return None  # asked for again
        return known if (known.scope, known.registration) == (scope, registration) else None

    def _register(
        self, by: given.DpsKeyIdentity | given.DpsCertificateIdentity, timeout_s: float, stop: threading.Event
    ) -> Assignment:
        """Ask the service.

        Raises:
            LinkDown: it said nothing in time, or no.
        """
        self._sdk.hands()
        options = {name: value for name, value in self._files().items() if name in _OF_PROVISIONING}
        service = self._sdk.device.ProvisioningDeviceClient
        said: list[Any] = []
        clients: list[Any] = []
        over = threading.Event()

        def register() -> None:
            try:
                if isinstance(by, given.DpsKeyIdentity):
                    client = service.create_from_symmetric_key(
                        by.host, by.registration, by.scope, self._device_key(by), **options
                    )
                else:
                    x509 = self._sdk.device.X509(by.certificate, by.key)
                    client = service.create_from_x509_certificate(
                        by.host, by.registration, by.scope, x509, **options
                    )
                clients.append(client)
                said.append(client.register())
            except Exception as error:  # noqa: BLE001 - looked at below, on the thread that waits
                said.append(error)
            over.set()

        self._state.parent.mkdir(parents=True, exist_ok=True)
        threading.Thread(target=register, name="provision", daemon=True).start()
        left_s = timeout_s
        while not over.wait(min(left_s, 0.1)):
            left_s -= 0.1
            if left_s <= 0 or stop.is_set():
                break
        result = said[0] if said else LinkDown(f"no assignment within {timeout_s:g} s")
        if clients and (isinstance(result, Exception) or result.status != "assigned"):
            let_go(self._sdk, clients[0])
        if isinstance(result, Exception):
            raise LinkDown(f"{by.host}: {explain(result, by.host, self.trust, self.proof)}") from result
        state = result.registration_state
        if result.status != "assigned" or not state.assigned_hub:
            raise LinkDown(f"{by.host}: {by.registration}: expected an assignment, got {result.status}")
        return Assignment(by.scope, by.registration, state.assigned_hub, state.device_id)

    def _device_key(self, by: given.DpsKeyIdentity) -> str:
        assert self._key is not None
        key = self._key.get()
        return derived(key, by.registration) if by.group else key


_OF_PROVISIONING = {"websockets", "keep_alive", "proxy_options", "server_verification_cert"}


def _from_edge(device: Any, options: dict[str, Any]) -> Any:
    try:
        return device.IoTHubModuleClient.create_from_edge_environment(**options)
    except OSError as error:
        if isinstance(error.__cause__, KeyError):
            raise LinkDown(
                "link.identity: auto: expected the environment of an IoT Edge module (IOTEDGE_WORKLOADURI "
                "and others), got none (run as a module of IoT Edge, or say link.identity)"
            ) from error
        raise


def derived(group_key: str, registration: str) -> str:
    """A device's own key, from that of its enrolment group.

    Source: Azure IoT Hub DPS, symmetric key attestation, group enrolments.
    """
    digest = hmac.new(base64.b64decode(group_key), registration.encode(), hashlib.sha256).digest()
    return base64.b64encode(digest).decode()


def connection_string(file: str) -> dict[str, str]:
    """The parts of a connection string, as they stand.

    Raises:
        ConfigError: it is not one of a device or module. It is never shown.
    """
    where = f"link.identity.connection_string_file: {file}"
    parts = [part.partition("=") for part in _line(where, file).split(";")]
    found = {name: value for name, sign, value in parts if sign and value}
    if len(found) != len(parts):
        raise ConfigError(f"{where}: expected NAME=VALUE;..., got something else")
    for name in ("HostName", "DeviceId", "SharedAccessKey"):
        if name not in found:
            raise ConfigError(f"{where}: expected {name} in it, got none (take that of the device or module)")
    known = {"HostName", "DeviceId", "ModuleId", "SharedAccessKey", "GatewayHostName"}
    if found.keys() - known:
        raise ConfigError(f"{where}: expected only {', '.join(sorted(known))} in it, got more")
    _check_key(where, found["SharedAccessKey"])
    return found


def shared_key(file: str) -> str:
    """A symmetric key, in base64.

    Raises:
        ConfigError: it is not one. It is never shown.
    """
    where = f"link.identity.key_file: {file}"
    text = _line(where, file)
    _check_key(where, text)
    return text


def _check_key(where: str, text: str) -> None:
    try:
        if base64.b64decode(text, validate=True):
            return
    except (binascii.Error, ValueError):
        pass  # said below, without the key that the error would carry
    raise ConfigError(f"{where}: expected a key in base64, got something else")


def _line(where: str, file: str) -> str:
    try:
        with Path(file).open("rb") as opened:
            text = opened.read(_MOST_BYTES).decode("ascii").strip()
    except OSError as error:
        raise ConfigError(f"{where}: cannot read it: {error.strerror or error}") from error
    except UnicodeDecodeError:
        text = ""
    if not text or not text.isprintable():
        raise ConfigError(f"{where}: expected one line of visible ASCII, got something else")
    return text
