"""A deployment as Kubernetes objects, for k3s: a kustomize base, overlays, one file of all, a list of images.

Source: https://kubernetes.io/docs/reference/kubernetes-api/, https://kubectl.docs.kubernetes.io/references/kustomize/,
https://docs.k3s.io/installation/packaged-components, https://docs.k3s.io/installation/airgap
"""

from __future__ import annotations

from collections.abc import Iterator

from skerry.deploy.contained import FOLDERS, Mount
from skerry.deploy.deployment import Deployment, Renderer
from skerry.deploy.k3s_findings import findings
from skerry.deploy.k3s_network import policies
from skerry.deploy.k3s_overlays import patch, variants
from skerry.deploy.k3s_pods import (
    BROKER_CONTAINER,
    CLAIM_OF_INPUTS,
    Object,
    broker_files_name,
    claims,
    confined_container,
    confined_pod,
    has_inputs,
    inputs_claim,
    labels,
    metadata,
    namespace,
    package_image,
    secrets,
    selector,
    service_account,
    workload_object,
    workloads,
)
from skerry.deploy.plain_yaml import dump

BASE, OVERLAYS = "base", "overlays"
BUNDLE_FILE, IMAGES_FILE = "bundle.yaml", "images.txt"
LOADER_FILE = "load-inputs.yaml"
"""A pod to copy videos and pictures through, where a site has any."""
_POD_SECURITY = "pod-security.kubernetes.io"


def objects(deployment: Deployment) -> list[Object]:
    """Every object of a site but its Secrets, in an order that they can be applied in."""
    return [each for _, group in _groups(deployment) for each in group]


def render(deployment: Deployment) -> dict[str, str]:
    """The files of a site for kustomize and k3s, by their path beside each other."""
    head = f"# {deployment.head()}\n"
    texts = {f"{name}.yaml": dump(*group) for name, group in _groups(deployment)}
    files = {f"{BASE}/{name}": head + text for name, text in texts.items()}
    files[f"{BASE}/kustomization.yaml"] = head + dump(_kustomization({"resources": list(texts)}))
    for name, variant in variants(deployment).items():
        files |= {f"{OVERLAYS}/{name}/{path}": text for path, text in _overlay(deployment, variant).items()}
    files[BUNDLE_FILE] = head + "---\n".join(texts.values())
    files[IMAGES_FILE] = image_list(deployment)
    if has_inputs(deployment):
        files[LOADER_FILE] = head + dump(_loader(deployment))
    return files


def image_list(deployment: Deployment) -> str:
    """Every image that a site runs, one a line, as k3s and `ctr` take them. The format has no comments."""
    packages = [package_image(m) for m in deployment.mounts if m.role == "models"]
    names = dict.fromkeys([*(c.image for c in deployment.containers), *packages])
    return "".join(f"{deployment.images.reference(name)}\n" for name in names)


def _groups(deployment: Deployment) -> Iterator[tuple[str, list[Object]]]:
    """The objects by file of the base."""
    yield "namespace", [_namespace(deployment)]
    yield "network", policies(deployment)
    if has_inputs(deployment):
        yield CLAIM_OF_INPUTS, [inputs_claim(deployment)]
    for workload in workloads(deployment):
        mine = [service_account(deployment, workload), *claims(deployment, workload)]
        if workload.name == BROKER_CONTAINER:
            mine += [_broker_files(deployment), _broker_service(deployment)]
        yield workload.name, [*mine, workload_object(deployment, workload)]


def _namespace(deployment: Deployment) -> Object:
    """Source: https://kubernetes.io/docs/concepts/security/pod-security-admission/."""
    levels = {f"{_POD_SECURITY}/{mode}": "restricted" for mode in ("enforce", "audit", "warn")}
    its = labels(deployment, "namespace")
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": namespace(deployment), "labels": {**its, **levels}},
    }


def _broker_files(deployment: Deployment) -> Object:
    assert deployment.broker is not None, "only a workload of that name gets here"
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(deployment, broker_files_name(deployment), BROKER_CONTAINER),
        "immutable": True,
        "data": dict(deployment.broker.files),
    }


def _broker_service(deployment: Deployment) -> Object:
    """The name that is in the broker's certificate."""
    assert deployment.broker is not None, "only a workload of that name gets here"
    port = deployment.broker.port
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(deployment, BROKER_CONTAINER, BROKER_CONTAINER),
        "spec": {
            "type": "ClusterIP",
            "selector": selector(deployment, BROKER_CONTAINER),
            "ports": [{"port": port, "targetPort": port, "protocol": "TCP"}],
        },
    }


def _kustomization(said: Object) -> Object:
    return {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", **said}


def _overlay(base: Deployment, variant: Deployment) -> dict[str, str]:
    """The files of an overlay, by their path in its folder."""
    head = f"# {base.head()}\n"
    before, after = _by_name(base), _by_name(variant)
    files: dict[str, str] = {}
    patches: list[Object] = []
    for (kind, name), its in before.items():
        gone = {"apiVersion": its["apiVersion"], "kind": kind, "metadata": {"name": name}, "$patch": "delete"}
        said = patch(its, after[kind, name]) if (kind, name) in after else gone
        if said:
            patches.append({"target": {"kind": kind, "name": name}, "patch": dump(said)})
    added = [its for key, its in after.items() if key not in before]
    if added:
        files["added.yaml"] = head + dump(*added)
    found = {"resources": ["../../base", *files], **({"patches": patches} if patches else {})}
    files["kustomization.yaml"] = head + dump(_kustomization(found))
    return {**files, IMAGES_FILE: image_list(variant)}


def _by_name(deployment: Deployment) -> dict[tuple[str, str], Object]:
    return {(its["kind"], its["metadata"]["name"]): its for its in objects(deployment)}


def _loader(deployment: Deployment) -> Object:
    """A pod that does nothing, for `kubectl cp` to write into the claim of inputs."""
    wait = "import signal; signal.signal(signal.SIGTERM, lambda *_: exit()); signal.pause()"
    container = {
        "name": LOADER_FILE.removesuffix(".yaml"),
        "image": deployment.images.reference("decision"),
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-c", wait],
        "resources": {"requests": {"memory": "16Mi", "cpu": "10m"}, "limits": {"memory": "64Mi"}},
        "securityContext": confined_container(),
        "volumeMounts": [{"name": CLAIM_OF_INPUTS, "mountPath": FOLDERS["inputs"]}],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata(deployment, LOADER_FILE.removesuffix(".yaml"), CLAIM_OF_INPUTS),
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 5,
            "securityContext": confined_pod(),
            "containers": [container],
            "volumes": [{"name": CLAIM_OF_INPUTS, "persistentVolumeClaim": {"claimName": CLAIM_OF_INPUTS}}],
        },
    }


def _copies(mount: Mount) -> str:
    """Nothing: packages come as images."""
    del mount
    return ""


def _told(deployment: Deployment) -> Iterator[str]:
    where = f"-n {namespace(deployment)}"
    for mount in deployment.mounts:
        if mount.role == "models":
            image = deployment.images.reference(package_image(mount))
            yield f"scripts/build-images --package {mount.outside}: {image}"
    yield f"kubectl apply -f {BASE}/namespace.yaml"
    if deployment.secure:
        yield "skerry certs SITE --out certificates"
    for secret in secrets(deployment):
        if secret.certificates:
            files = [f"--from-file=certificates/{path}" for path in secret.keys.values()]
            kind = "--type=kubernetes.io/tls "
        else:
            files = [f"--from-file={key}={path or 'FILE'}" for key, path in secret.keys.items()]
            kind = ""
        yield f"kubectl create secret generic {secret.name} {where} {kind}{' '.join(files)}"
    if has_inputs(deployment):
        yield f"kubectl apply -k {BASE}, then {LOADER_FILE} says where these go:"
        yield from (
            f"{m.inside.removeprefix('/')}: put {m.outside} there"
            for m in deployment.mounts
            if m.role == "inputs"
        )
    yield f"kubectl apply -k {BASE}, or -k {OVERLAYS}/NAME"


RENDERER = Renderer(
    render=render, findings=findings, copies=_copies, told=lambda deployment: list(_told(deployment))
)
