"""The pods of a site on Kubernetes: what each container runs, sees and may take.

Every pod holds to the Pod Security Standard *restricted*, which knows no file or device of the node: so
capture and inference are in one pod, which is how they share memory, and a camera of the node comes from a
device plugin.

Source: https://kubernetes.io/docs/concepts/security/pod-security-standards/
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import msgspec

from skerry.buffer.settings import BufferSettings
from skerry.decision.settings import DecisionSettings
from skerry.deploy.contained import BUS_CERTIFICATES, FOLDERS, FRAMES, USER, Mount
from skerry.deploy.containers import BROKER_FILES, TMP_MB, Container, Volume, mib
from skerry.deploy.deployment import Deployment
from skerry.deploy.devices import DEVICES
from skerry.deploy.plan import CA_FILE, CERTIFICATE_FILE, KEY_FILE
from skerry.messages import LANES
from skerry.updater.settings import UpdaterSettings

Object = dict[str, Any]

VISION = "vision"
"""The pod of capture and inference."""
BROKER_CONTAINER = "broker"
CLAIM_OF_INPUTS = "inputs"
CAMERA_RESOURCES = "squat.ai"
"""The domain of what generic-device-plugin advertises, unless it is told another."""
ENDPOINT_KEY = "aws-iot-endpoint"
"""Key of the uplink's secret that holds the host of IoT Core, where the site file does not say it."""
ENDPOINT = "AWS_IOT_ENDPOINT"
ENDPOINT_REFERENCE = f"$({ENDPOINT})"
"""What Kubernetes puts that host in the place of."""

_ACCELERATORS = {
    "nvidia": "nvidia.com/gpu", "intel-gpu": "gpu.intel.com/i915", "intel-npu": "npu.intel.com/accel",
}  # fmt: skip
_GROUPS = {"video": 44, "render": 105}
"""Numbers of groups on Debian; `render` is another one on many a machine."""
_CPU_REQUESTED_M = {"capture": 250, "inference": 500}
"""Thousandths of a core that are kept for a container, where 50 are too few."""
_STATE_MIB = {"capture": 64, "inference": 2048, "uplink": 256}
"""Room for tallies and settings; with what was measured and compiled of models; with certificates."""
_ROOM_BESIDE_MIB = 64
"""Of the updater's state beside its audit log, and of the store beside its packages: metadata and links."""
_OUTPUT_MIB = 4096
_START_S = {"inference": 900}
"""How long a module may take until its main loop moves, where 300 s are too few: TensorRT compiles."""
_KEY_MODE = 0o440
"""Of secret files: they are root's, and of the pod's group, which is `USER`."""


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """A Deployment, and the containers in its pod."""

    name: str
    containers: tuple[Container, ...]


class SecretKeys(msgspec.Struct, frozen=True, kw_only=True):
    """A Secret that must be there before its pod can start. Nothing generated has what is in it."""

    name: str
    keys: dict[str, str]
    """Where on the machine that renders each key's file is; empty: only the operator knows. Of certificates:
    below the folder that `skerry certs` makes."""
    certificates: bool = False
    """Whether it is what somebody needs on the bus, of type `kubernetes.io/tls`."""


def namespace(deployment: Deployment) -> str:
    """Each site has one of its own."""
    return f"skerry-{deployment.plan.site}"


def workloads(deployment: Deployment) -> tuple[Workload, ...]:
    """What runs, in the order of starting."""
    found = [Workload(name=c.name, containers=(c,)) for c in deployment.containers if not _sees(c)]
    seeing = tuple(c for c in deployment.containers if _sees(c))
    return (*found, Workload(name=VISION, containers=seeing))


def metadata(deployment: Deployment, name: str, component: str) -> Object:
    """Name and labels of anything in the site's namespace."""
    return {"name": name, "namespace": namespace(deployment), "labels": labels(deployment, component)}


def labels(deployment: Deployment, component: str) -> dict[str, str]:
    """Source: https://kubernetes.io/docs/concepts/overview/working-with-objects/common-labels/."""
    return {
        **selector(deployment, component),
        "app.kubernetes.io/version": deployment.images.tag,
        "app.kubernetes.io/part-of": "skerry",
        "app.kubernetes.io/managed-by": "skerry-render",
    }


def selector(deployment: Deployment, component: str) -> dict[str, str]:
    """Labels that never change, since a Deployment's selector cannot."""
    return {
        "app.kubernetes.io/name": "skerry",
        "app.kubernetes.io/instance": deployment.plan.site,
        "app.kubernetes.io/component": component,
    }


def service_account(deployment: Deployment, workload: Workload) -> Object:
    """Who the pod is to the cluster: nobody with any right."""
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": metadata(deployment, workload.name, workload.name),
        "automountServiceAccountToken": False,
    }


def broker_files_name(deployment: Deployment) -> str:
    """Name of the ConfigMap with the broker's files.

    It changes with them, so that a change starts the broker again and `kubectl rollout undo` finds the old.
    """
    broker = deployment.broker
    content = "" if broker is None else "\0".join(f"{k}\0{v}" for k, v in sorted(broker.files.items()))
    return f"{BROKER_CONTAINER}-{hashlib.sha256(content.encode()).hexdigest()[:10]}"


def claims(deployment: Deployment, workload: Workload) -> list[Object]:
    """What outlives a pod: each module's state, what a file link wrote, and the models that came.

    A claim comes with who writes it.
    """
    return [
        _claim(deployment, workload, volume.name, _room_mib(container, volume))
        for container in workload.containers
        for volume in container.volumes
        if volume.kind != "frames" and not volume.read_only
    ]


def inputs_claim(deployment: Deployment, size_mib: int = 8192) -> Object:
    """Where videos, pictures and the file of desired settings are, which the operator puts there."""
    return _claim(deployment, Workload(name=CLAIM_OF_INPUTS, containers=()), CLAIM_OF_INPUTS, size_mib)


def has_inputs(deployment: Deployment) -> bool:
    """Whether the site names files that an operator brings."""
    return any(mount.role == "inputs" for mount in deployment.mounts)


def secrets(deployment: Deployment) -> tuple[SecretKeys, ...]:
    """Every Secret that must be there, each with its keys."""
    return tuple(_secrets(deployment))


def package_image(mount: Mount) -> str:
    """Name of the image that holds a model package, as `Images.reference` takes it."""
    return f"package-{mount.name}"


def camera_resource(device: str) -> str:
    """What a camera of the node is called where pods ask for it: `squat.ai/video0` of /dev/video0."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", device.removeprefix("/dev/")).strip("-")
    return f"{CAMERA_RESOURCES}/{name}"


def workload_object(deployment: Deployment, workload: Workload) -> Object:
    """The Deployment. One pod: two would fight for the camera, and for a module's name on the bus."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(deployment, workload.name, workload.name),
        "spec": {
            "replicas": 1,
            "revisionHistoryLimit": 5,
            # The old one ends first: who has the camera, the state and the name on the bus is one.
            "strategy": {"type": "Recreate"},
            "progressDeadlineSeconds": 1200,
            "selector": {"matchLabels": selector(deployment, workload.name)},
            "template": {
                "metadata": {"labels": labels(deployment, workload.name)},
                "spec": _pod(deployment, workload),
            },
        },
    }


def confined_pod() -> Object:
    """What Pod Security *restricted* wants of a pod, and a group that can read its secrets."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def confined_container() -> Object:
    """What it wants of a container, and a root file system that is read-only."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _pod(deployment: Deployment, workload: Workload) -> Object:
    its = workload.containers
    groups = sorted({_GROUPS[group] for c in its for group in c.groups})
    nvidia = any("nvidia" in c.accelerators for c in its)
    architecture = DEVICES[deployment.site.device].architecture if deployment.site.device in DEVICES else ""
    models = [m for c in its for m in c.mounts if m.role == "models"]
    pod = {
        "serviceAccountName": workload.name,
        "automountServiceAccountToken": False,
        # Variables that name the namespace's services would be read as references in settings.
        "enableServiceLinks": False,
        "nodeSelector": {"kubernetes.io/arch": architecture} if architecture else {},
        "affinity": _affinity(deployment, workload),
        "runtimeClassName": "nvidia" if nvidia else "",
        "securityContext": {**confined_pod(), **({"supplementalGroups": groups} if groups else {})},
        "terminationGracePeriodSeconds": max(c.stop_s for c in its),
        "initContainers": [_package(deployment, n, mount) for n, mount in enumerate(models, 1)],
        "containers": [_container(deployment, c) for c in its],
        "volumes": _pod_volumes(deployment, its),
    }
    return {key: value for key, value in pod.items() if value not in ({}, [], "")}


def _affinity(deployment: Deployment, workload: Workload) -> Object:
    """The updater runs where inference does: their claim can be mounted by pods of one node alone.

    Source: https://kubernetes.io/docs/concepts/storage/persistent-volumes/#access-modes,
    https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/#inter-pod-affinity-and-anti-affinity
    """
    if not any(v.kind == "store" and not v.read_only for c in workload.containers for v in c.volumes):
        return {}
    beside = {
        "labelSelector": {"matchLabels": selector(deployment, VISION)},
        "topologyKey": "kubernetes.io/hostname",
    }
    return {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [beside]}}


def _package(deployment: Deployment, n: int, mount: Mount) -> Object:
    """Bring a model package: too large for a ConfigMap, and no file of the node may be mounted."""
    return {
        "name": f"package-{n}",
        "image": deployment.images.reference(package_image(mount)),
        "imagePullPolicy": "IfNotPresent",
        "args": [mount.inside],
        "resources": {
            "requests": {"memory": "32Mi", "cpu": "50m"},
            "limits": {"memory": "128Mi"},
        },
        "securityContext": confined_container(),
        "volumeMounts": [{"name": "models", "mountPath": FOLDERS["models"]}],
    }


def _container(deployment: Deployment, container: Container) -> Object:
    made = {
        "name": container.name,
        "image": deployment.images.reference(container.image),
        "imagePullPolicy": "IfNotPresent",
        "env": list(_environment(container)),
        "ports": [{"containerPort": container.port, "protocol": "TCP"}],
        **_probes(container),
        "resources": _resources(container),
        "securityContext": confined_container(),
        "volumeMounts": list(_mounted(container)),
    }
    return {key: value for key, value in made.items() if value != []}


def _environment(container: Container) -> Iterator[Object]:
    variables = container.environment
    if any(ENDPOINT_REFERENCE in value for value in variables.values()):
        reference = {"name": _secret_name(container), "key": ENDPOINT_KEY}
        yield {"name": ENDPOINT, "valueFrom": {"secretKeyRef": reference}}
    for name, value in variables.items():
        # $(NAME) is Kubernetes' own, and $$ one of ours; the one reference that we make stays.
        escaped = value.replace("$", "$$").replace(f"${ENDPOINT_REFERENCE}", ENDPOINT_REFERENCE)
        yield {"name": name, "value": escaped}
    if "nvidia" in container.accelerators:
        yield {"name": "NVIDIA_DRIVER_CAPABILITIES", "value": "compute,utility"}


def _probes(container: Container) -> Object:
    """Whether it has started, can be sent to, and lives. Of the broker the health command says all three."""
    if container.settings is None:
        command = {"exec": {"command": list(container.health)}}
        return {
            "startupProbe": {**command, "periodSeconds": 2, "timeoutSeconds": 5, "failureThreshold": 30},
            "readinessProbe": {**command, "periodSeconds": 15, "timeoutSeconds": 5, "failureThreshold": 2},
            "livenessProbe": {**command, "periodSeconds": 15, "timeoutSeconds": 5, "failureThreshold": 3},
        }
    alive = {"httpGet": {"path": "/healthz", "port": container.port}}
    ready = {"httpGet": {"path": "/readyz", "port": container.port}}
    tries = _START_S.get(container.kind, 300) // 2
    return {
        "startupProbe": {**alive, "periodSeconds": 2, "timeoutSeconds": 5, "failureThreshold": tries},
        "readinessProbe": {**ready, "periodSeconds": 5, "timeoutSeconds": 5, "failureThreshold": 3},
        "livenessProbe": {**alive, "periodSeconds": 15, "timeoutSeconds": 5, "failureThreshold": 3},
    }


def _resources(container: Container) -> Object:
    """Bounds, and what the scheduler keeps: half of the memory, since bounds are twice what the demo takes.

    Frames and /tmp are in memory and count against the bound of who wrote them, so frames are kept whole.
    """
    frames = sum(mib(v.bytes) for v in container.volumes if v.kind == "frames" and not v.read_only)
    kept = frames + math.ceil((container.memory_mb - frames) / 2)
    cpu_m = _CPU_REQUESTED_M.get(container.kind, 50)
    if container.cpus is not None:
        cpu_m = min(cpu_m, round(1000 * container.cpus))
    # Accelerators have devices too, and plugins that know them.
    extended = {camera_resource(d): 1 for d in container.devices if container.kind == "capture"}
    extended |= {_ACCELERATORS[name]: 1 for name in container.accelerators}
    limits = {
        "memory": f"{container.memory_mb}Mi",
        **({"cpu": f"{round(1000 * container.cpus)}m"} if container.cpus is not None else {}),
        **{name: str(n) for name, n in extended.items()},
    }
    return {"requests": {"memory": f"{kept}Mi", "cpu": f"{cpu_m}m"}, "limits": limits}


def _mounted(container: Container) -> Iterator[Object]:
    yield {"name": f"tmp-{container.name}", "mountPath": "/tmp"}  # noqa: S108 - the container's own
    for volume in container.volumes:
        name = "frames" if volume.kind == "frames" else volume.name
        yield {"name": name, "mountPath": volume.inside, **({"readOnly": True} if volume.read_only else {})}
    for role in dict.fromkeys(mount.role for mount in container.mounts):
        name = {"secrets": _secret_name(container), "inputs": CLAIM_OF_INPUTS, "models": "models"}[role]
        yield {"name": name, "mountPath": FOLDERS[role], "readOnly": True}
    if container.files:
        yield {"name": "configuration", "mountPath": BROKER_FILES, "readOnly": True}
    if container.identity:
        name = _certificates_name(container)
        yield {"name": name, "mountPath": BUS_CERTIFICATES, "readOnly": True}


def _pod_volumes(deployment: Deployment, its: tuple[Container, ...]) -> list[Object]:
    found: dict[str, Object] = {}
    for container in its:
        for each in _volumes(deployment, container):
            found.setdefault(each["name"], each)
    return list(found.values())


def _volumes(deployment: Deployment, container: Container) -> Iterator[Object]:
    yield {"name": f"tmp-{container.name}", "emptyDir": {"medium": "Memory", "sizeLimit": f"{TMP_MB}Mi"}}
    for volume in container.volumes:
        if volume.kind == "frames":
            room = {"medium": "Memory", "sizeLimit": f"{mib(volume.bytes)}Mi"}
            yield {"name": "frames", "emptyDir": room}
        else:
            yield {"name": volume.name, "persistentVolumeClaim": {"claimName": volume.name}}
    roles = {mount.role for mount in container.mounts}
    if "models" in roles:
        yield {"name": "models", "emptyDir": {}}
    if "inputs" in roles:
        claim = {"claimName": CLAIM_OF_INPUTS, "readOnly": True}
        yield {"name": CLAIM_OF_INPUTS, "persistentVolumeClaim": claim}
    if "secrets" in roles:
        names = [mount.name for mount in container.mounts if mount.role == "secrets"]
        yield _secret_volume(_secret_name(container), names)
    if container.files:
        yield {"name": "configuration", "configMap": {"name": broker_files_name(deployment)}}
    if container.identity:
        yield _secret_volume(_certificates_name(container), [CA_FILE, CERTIFICATE_FILE, KEY_FILE])


def _secret_volume(name: str, keys: list[str]) -> Object:
    items = [{"key": key, "path": key} for key in keys]
    # `optional` is what it is by default; podman 4.3 falls over it where it is not said.
    secret = {"secretName": name, "defaultMode": _KEY_MODE, "optional": False, "items": items}
    return {"name": name, "secret": secret}


def _secrets(deployment: Deployment) -> Iterator[SecretKeys]:
    for container in deployment.containers:
        if container.identity:
            files = (CA_FILE, CERTIFICATE_FILE, KEY_FILE)
            keys = {file: str(PurePosixPath(container.name, file)) for file in files}
            yield SecretKeys(name=_certificates_name(container), keys=keys, certificates=True)
        keys = {mount.name: mount.outside for mount in container.mounts if mount.role == "secrets"}
        if any(ENDPOINT_REFERENCE in value for value in container.environment.values()):
            keys[ENDPOINT_KEY] = ""
        if keys:
            yield SecretKeys(name=_secret_name(container), keys=keys)


def _secret_name(container: Container) -> str:
    return f"secrets-{container.name}"


def _certificates_name(container: Container) -> str:
    return f"certificates-{container.name}"


def _claim(deployment: Deployment, workload: Workload, name: str, size_mib: int) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata(deployment, name, workload.name),
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": f"{size_mib}Mi"}},
        },
    }


def _room_mib(container: Container, volume: Volume) -> int:
    """What a module may write there at most, as far as it is bounded."""
    if volume.kind == "output":
        return _OUTPUT_MIB
    match container.settings:
        case UpdaterSettings(room=room) if volume.kind == "store":
            # The floor is left free whatever the quota, and the claim is all the disk that it sees.
            return mib(room.quota_bytes + room.floor_bytes) + _ROOM_BESIDE_MIB
        case UpdaterSettings(audit_bytes=audit):
            return mib(audit) + _ROOM_BESIDE_MIB
        case BufferSettings(limit_bytes=log, quarantine_bytes=quarantine):
            return mib(log + 2 * quarantine) + 128
        case DecisionSettings(outbox_bytes=outbox):
            return mib(2 * len(LANES) * outbox) + 64
        case _:
            return _STATE_MIB[container.kind]


def _sees(container: Container) -> bool:
    return any(volume.inside == FRAMES for volume in container.volumes)
