"""From a site to a plan: the processes that serve it, in terms of no platform."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from skerry import channels
from skerry.buffer.settings import BufferSettings
from skerry.capture.settings import CaptureSettings
from skerry.decision.settings import DecisionSettings
from skerry.deploy.site import Site, SiteBuffer
from skerry.inference.settings import InferenceSettings
from skerry.settings import BusSettings, ModuleSettings, Settings, TlsSettings
from skerry.updater.settings import UpdaterSettings
from skerry.uplink.settings import FileLink, UplinkSettings

KINDS = channels.KINDS
"""In the order of the data's flow, which is the order of draining; the updater, beside it, is the last."""
FLOW = tuple(kind for kind in KINDS if kind != "updater")

CA_FILE, CERTIFICATE_FILE, KEY_FILE = "ca.crt", "tls.crt", "tls.key"
"""As Kubernetes names what is in a secret of type `kubernetes.io/tls`."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a plan will run: paths and the bus as the processes will see them."""

    state: str
    frames: str
    output: str
    bus: BusSettings
    log: str = "json"
    cache: str = ""
    """Folder that remembers what was measured on this device; empty: inside the state folder."""
    store: str = ""
    """Folder of the model store, written by the updater, read by inference; empty: `models` in `state`."""
    certificates: str = ""
    """Folder of a module's `ca.crt`, `tls.crt` and `tls.key` as the module sees it; `{module}` stands for its
    name (see `skerry certs`). Empty: whatever `bus` says, the same for all."""

    http_host: str = "127.0.0.1"
    http_port: int | None = None
    """Where each module serves /healthz, /readyz and /metrics; None: it does not."""
    http_shared: tuple[str, ...] = ()
    """Kinds of modules that share one network address: the second of them has the next port, and so on."""

    def bus_of(self, module: str) -> BusSettings:
        """The bus as one module meets it: with a certificate of its own, where there are such."""
        if not self.certificates:
            return self.bus
        folder = Path(self.certificates.replace("{module}", module))
        tls = TlsSettings(
            ca=str(folder / CA_FILE), certificate=str(folder / CERTIFICATE_FILE), key=str(folder / KEY_FILE)
        )
        return msgspec.structs.replace(self.bus, tls=tls)


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One process."""

    module: str
    """Name of the instance."""
    kind: str
    settings: ModuleSettings

    @property
    def settings_json(self) -> str:
        """What goes into `SKERRY_SETTINGS`."""
        return msgspec.json.encode(self.settings).decode()


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Every process of a site, in the order of the data's flow."""

    site: str
    parts: tuple[Part, ...]

    def of(self, kind: str) -> tuple[Part, ...]:
        """The parts of one kind."""
        return tuple(p for p in self.parts if p.kind == kind)


def plan(site: Site, place: Place) -> Plan:
    """Decide which processes serve a site and what each is told. Pure."""
    cameras = tuple(c.name for c in site.cameras)
    captures = site.captures or {"capture": cameras}
    store = place.store or str(Path(place.state) / "models")
    kinds = [(module, "capture") for module in captures] + [(kind, kind) for kind in FLOW[1:]]
    together = [module for module, kind in kinds if kind in place.http_shared]

    def shared(module: str, grace_s: float) -> dict[str, Any]:
        port = place.http_port
        if port is not None and module in together:
            port += together.index(module)
        return {
            "site": site.site,
            "module": module,
            "bus": place.bus_of(module),
            "state": str(Path(place.state) / module),
            "http_host": place.http_host,
            "http_port": port,
            "log": place.log,
            "log_level": site.log_level,
            "grace_s": grace_s,
        }

    parts = [
        Part(
            module=module,
            kind="capture",
            settings=CaptureSettings(
                **shared(module, 1.0),
                frames=place.frames,
                slots=site.frames.slots,
                cameras=tuple(c for c in site.cameras if c.name in names),
            ),
        )
        for module, names in captures.items()
    ]
    link = site.link
    if isinstance(link, FileLink):
        link = msgspec.structs.replace(link, path=str(Path(place.output) / link.path))
    parts += [
        Part(
            module="inference",
            kind="inference",
            settings=InferenceSettings(
                **shared("inference", 1.0),
                frames=place.frames,
                models=_models(site, cameras),
                store=store if site.updater is not None else "",
                cache=place.cache,
                snapshots=_snapshots(site),
            ),
        ),
        Part(
            module="decision",
            kind="decision",
            settings=DecisionSettings(
                **shared("decision", 1.0), cameras=cameras, tracker=site.tracker, rules=site.rules
            ),
        ),
        Part(
            module="buffer",
            kind="buffer",
            settings=BufferSettings(**shared("buffer", 1.0), **_buffer(site.buffer)),
        ),
        Part(
            module="uplink",
            kind="uplink",
            settings=UplinkSettings(
                **shared("uplink", 0.7), link=link, sending=site.uplink, remote=site.remote
            ),
        ),
    ]
    if site.updater is not None:
        parts.append(
            Part(
                module="updater",
                kind="updater",
                settings=UpdaterSettings(
                    **shared("updater", 0.7), store=store, device_class=site.device, **_said(site.updater)
                ),
            )
        )
    return Plan(site=site.site, parts=tuple(parts))


def _said(settings: Settings) -> dict[str, Any]:
    """What is said, by name."""
    return {name: getattr(settings, name) for name in settings.__struct_fields__}


def _buffer(buffer: SiteBuffer) -> dict[str, Any]:
    """What the site says of the buffer, by the names of its settings."""
    said = _said(buffer)
    said["limit_bytes"] = said.pop("bytes")
    return said


def _models(site: Site, cameras: tuple[str, ...]) -> Any:
    """The site's models, each with its cameras by name."""
    named = {name for model in site.models for name in model.cameras}
    rest = tuple(c for c in cameras if c not in named)
    return tuple(m if m.cameras else msgspec.structs.replace(m, cameras=rest) for m in site.models)


def _snapshots(site: Site) -> dict[str, Any]:
    """What inference may keep of the cameras, and have kept: what they allow of themselves."""
    return {camera.name: camera.snapshots for camera in site.cameras if camera.snapshots != "never"}
