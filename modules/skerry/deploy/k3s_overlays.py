"""Overlays: the same plan on another device, or with another link, as what differs from the base.

Each is rendered like the base, from the site with a few settings replaced; an overlay's files are the
difference of the two, so applying it gives what rendering that site would.

Source: RFC 6902 (JSON Patch); https://kubectl.docs.kubernetes.io/references/kustomize/kustomization/patches/
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import msgspec

from skerry.deploy.containers import Accelerator
from skerry.deploy.deployment import Deployment, deployment
from skerry.deploy.devices import DEVICES
from skerry.deploy.k3s_pods import ENDPOINT_REFERENCE, Object
from skerry.deploy.site import Site
from skerry.inference.settings import DEVICES as RUNTIME_DEVICES
from skerry.inference.settings import Device, ModelUse
from skerry.settings import TlsSettings
from skerry.uplink.settings import AwsLink, AzureLink, ConnectionStringIdentity

AZURE_STRING, AWS_CERTIFICATE, AWS_KEY = "azure-connection-string", "aws-iot.crt", "aws-iot.key"
"""Keys of the uplink's secret in the overlays with a cloud's link."""

_replace = msgspec.structs.replace


def variants(base: Deployment) -> dict[str, Deployment]:
    """The deployments that overlays lead to, by name of the overlay."""
    return {name: _variant(base, change) for name, change in _CHANGES.items()}


def patch(before: Any, after: Any, path: str = "") -> list[Object]:
    """Operations that make one document into another, in the order of the first's keys."""
    if before == after:
        return []
    if isinstance(before, dict) and isinstance(after, dict):
        return list(_members(before, after, path))
    if isinstance(before, list) and isinstance(after, list) and _names(before) == _names(after):
        pairs = zip(before, after, strict=True)
        return [step for n, (one, other) in enumerate(pairs) for step in patch(one, other, f"{path}/{n}")]
    return [{"op": "replace", "path": path, "value": after}]


def _members(before: Object, after: Object, path: str) -> Iterator[Object]:
    for key in (*before, *(k for k in after if k not in before)):
        where = f"{path}/{key.replace('~', '~0').replace('/', '~1')}"
        if key not in after:
            yield {"op": "remove", "path": where}
        elif key not in before:
            yield {"op": "add", "path": where, "value": after[key]}
        else:
            yield from patch(before[key], after[key], where)


def _names(items: list[Any]) -> list[Any]:
    """What tells the members of a list apart: their names, or their places."""
    return [item.get("name", n) if isinstance(item, dict) else n for n, item in enumerate(items)]


def _variant(base: Deployment, change: Callable[[Site], Site]) -> Deployment:
    # What the site says of k3s is in its link already.
    site = change(_replace(base.site, targets={}))
    return deployment(site, base.target, secure=base.secure, images=base.images)


class _Hardware(msgspec.Struct, frozen=True, kw_only=True):
    """Where models run in an overlay."""

    devices: tuple[Device, ...]
    """A model on one of these stays there; any other goes to the first."""
    accelerator: Accelerator | None = None
    architecture: Literal["amd64", "arm64"] | None = None
    device: str = ""
    """The class of the device, where the site's own has no such accelerator, or another processor."""

    def __call__(self, site: Site) -> Site:
        models = tuple(self._model(model) for model in site.models)
        return _replace(site, models=models, device=site.device if self._fits(site) else self.device)

    def _fits(self, site: Site) -> bool:
        its = DEVICES.get(site.device)
        if its is None:
            return self.architecture is None
        right = self.architecture in (None, its.architecture)
        return right and (self.accelerator is None or self.accelerator in its.accelerators)

    def _model(self, model: ModelUse) -> ModelUse:
        """The model on such a device, with the runtime that it has if that knows the device."""
        device = model.device if model.device in self.devices else self.devices[0]
        knows = model.runtime == "auto" or device in RUNTIME_DEVICES[model.runtime]
        return _replace(model, device=device, runtime=model.runtime if knows else "auto")


def _azure(site: Site) -> Site:
    if isinstance(site.link, AzureLink):
        return site
    identity = ConnectionStringIdentity(connection_string_file=AZURE_STRING)
    return _replace(site, link=AzureLink(identity=identity))


def _aws(site: Site) -> Site:
    if isinstance(site.link, AwsLink):
        return site
    tls = TlsSettings(certificate=AWS_CERTIFICATE, key=AWS_KEY)
    return _replace(site, link=AwsLink(endpoint=ENDPOINT_REFERENCE, tls=tls))


_CHANGES: dict[str, Callable[[Site], Site]] = {
    "cpu": _Hardware(devices=("cpu",)),
    "nvidia": _Hardware(devices=("cuda", "tensorrt"), accelerator="nvidia"),
    "intel": _Hardware(devices=("gpu", "npu"), architecture="amd64", device="amd64-intel"),
    "arm64": _Hardware(devices=("cpu",), architecture="arm64", device="arm64-4gb"),
    "azure": _azure,
    "aws": _aws,
}
"""What the site says otherwise in each overlay."""
