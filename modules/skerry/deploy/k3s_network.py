"""Who may talk to whom on Kubernetes: nobody, but for what each policy here lets through.

Policies add up. All say what may go out of a pod and what may come in; the kubelet's own probes always may.

Source: https://kubernetes.io/docs/concepts/services-networking/network-policies/
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from urllib.parse import urlsplit

from skerry.capture.settings import CaptureSettings, MjpegSource, RtspSource
from skerry.deploy.containers import Container
from skerry.deploy.deployment import Deployment
from skerry.deploy.k3s_pods import BROKER_CONTAINER, Object, Workload, metadata, selector, workloads
from skerry.updater.settings import FolderSourceSettings, UpdaterSettings
from skerry.uplink.settings import (
    AwsLink,
    AzureLink,
    FileLink,
    GreengrassLink,
    HttpLink,
    Link,
    MqttLink,
    UplinkSettings,
)

Far = tuple[str, int]
"""A host, by name or address (empty: any), and a port."""

_SCHEME_PORTS = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}
_COMPONENT = "app.kubernetes.io/component"


def policies(deployment: Deployment) -> list[Object]:
    """Every NetworkPolicy of a site."""
    everybody = [w.name for w in workloads(deployment)]
    others = [name for name in everybody if name != BROKER_CONTAINER]
    nobody = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    found = [
        _policy(deployment, "default-deny", nobody),
        _policy(deployment, "dns", _dns(deployment, others)),
    ]
    if deployment.broker is not None:
        port = [{"port": deployment.broker.port, "protocol": "TCP"}]
        broker = {"podSelector": {"matchLabels": selector(deployment, BROKER_CONTAINER)}}
        clients = {"podSelector": _some(deployment, others)}
        found += [
            _policy(deployment, "to-broker", {
                **clients, "policyTypes": ["Egress"], "egress": [{"to": [broker], "ports": port}],
            }),
            _policy(deployment, "broker", {
                **broker, "policyTypes": ["Ingress"], "ingress": [{"from": [clients], "ports": port}],
            }),
        ]  # fmt: skip
    for workload in workloads(deployment):
        far = sorted({each for c in workload.containers for each in outside(c)})
        if far:
            found.append(_policy(deployment, f"outside-{workload.name}", _outside(deployment, workload, far)))
    return found


def outside(container: Container) -> Iterator[Far]:
    """What a container reaches beyond the site."""
    if not container.outside or container.settings is None:
        return
    match container.settings:
        case CaptureSettings(cameras=cameras):
            for camera in cameras:
                if isinstance(camera.source, RtspSource | MjpegSource):
                    yield _of_url(camera.source.url)
        case UplinkSettings(link=link):
            yield from link_ends(link)
        case UpdaterSettings(sources=sources):
            yield from (_of_url(s.url) for s in sources if not isinstance(s, FolderSourceSettings))
        case _:
            pass
    bus = container.settings.bus
    if bus.host != BROKER_CONTAINER:
        yield bus.host, bus.port


def link_ends(link: Link) -> Iterator[Far]:
    """Where a link goes: through its proxy and nowhere else, where it has one."""
    proxy = getattr(link, "proxy", "")
    if proxy:
        yield _of_url(proxy)
        return
    match link:
        case FileLink() | GreengrassLink():
            return
        case MqttLink(host=host, port=port) | AwsLink(endpoint=host, port=port):
            yield host, port
        case HttpLink(url=url):
            yield _of_url(url)
        case AzureLink(websockets=websockets):
            # Hub and provisioning service; which hub, a connection string or that service says.
            yield "", 443 if websockets else 8883


def _policy(deployment: Deployment, name: str, spec: Object) -> Object:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(deployment, name, "network"),
        "spec": spec,
    }


def _some(deployment: Deployment, components: list[str]) -> Object:
    """Pods of these components of this site."""
    site = {key: value for key, value in selector(deployment, "").items() if key != _COMPONENT}
    chosen = {"key": _COMPONENT, "operator": "In", "values": components}
    return {"matchLabels": site, "matchExpressions": [chosen]}


def _dns(deployment: Deployment, components: list[str]) -> Object:
    """Everybody but the broker looks up names, with the cluster's own server."""
    server = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
    }
    ports = [{"port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")]
    return {
        "podSelector": _some(deployment, components),
        "policyTypes": ["Egress"],
        "egress": [{"to": [server], "ports": ports}],
    }


def _outside(deployment: Deployment, workload: Workload, far: list[Far]) -> Object:
    egress = []
    for host, port in far:
        block = _block(host)
        # A policy knows addresses, not names: by name, the port is all that can be said.
        to = {"to": [{"ipBlock": {"cidr": block}}]} if block else {}
        egress.append({**to, "ports": [{"port": port, "protocol": "TCP"}]})
    unlike = [rule for n, rule in enumerate(egress) if rule not in egress[:n]]
    return {
        "podSelector": {"matchLabels": selector(deployment, workload.name)},
        "policyTypes": ["Egress"],
        "egress": unlike,
    }


def _block(host: str) -> str:
    """A host as a network of one address; empty where it is a name."""
    try:
        return str(ipaddress.ip_network(host.strip("[]")))
    except ValueError:
        return ""


def _of_url(url: str) -> Far:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or _SCHEME_PORTS[parts.scheme]
