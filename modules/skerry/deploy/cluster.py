"""What a cluster should have for a site, what differs, and what a pod that is not ready is waiting for.

No cluster is asked here. Objects are plain data, as the API server takes and gives them.

Source: https://kubernetes.io/docs/reference/using-api/server-side-apply/,
https://kubernetes.io/docs/concepts/workloads/controllers/deployment/#deployment-status,
https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from skerry.deploy.archive import Entry, content_name
from skerry.errors import ConfigError
from skerry.redact import cleaned

Object = dict[str, Any]

MANAGER = "skerry"
"""Who owns the fields that we set."""
SECRETS_ANNOTATION = "skerry/secrets"
"""Of a pod: which secrets it has been started with. New ones start it again."""
PART_OF, INSTANCE, COMPONENT = (f"app.kubernetes.io/{name}" for name in ("part-of", "instance", "component"))
_FLOW = ("vision", "decision", "buffer", "uplink", "updater", "broker")
"""Which pod ends before which: nothing is on its way when the next one ends."""
_LONGEST = 160
"""Characters of a value in a line of differences."""
_CRASHES = 3
"""Restarts after which waiting longer makes nothing ready."""
_HIDDEN = "(not shown)"
_OF_THE_SERVER = ("managedFields", "resourceVersion", "generation", "uid", "creationTimestamp", "selfLink")
_NO_PULL = ("ImagePullBackOff", "ErrImagePull", "ErrImageNeverPull", "InvalidImageName")


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """Where objects of a kind are in the API."""

    version: str
    plural: str
    namespaced: bool = True
    kept: bool = False
    """Whether it has what cannot be made again: it stays until somebody says that it may go."""

    def path(self, namespace: str, name: str = "") -> str:
        """Of one object, or of all of a namespace."""
        root = f"/api/{self.version}" if "/" not in self.version else f"/apis/{self.version}"
        where = f"/namespaces/{namespace}" if self.namespaced else ""
        return f"{root}{where}/{self.plural}{f'/{name}' if name else ''}"


KINDS: dict[str, Kind] = {
    "Namespace": Kind(version="v1", plural="namespaces", namespaced=False),
    "ServiceAccount": Kind(version="v1", plural="serviceaccounts"),
    "Secret": Kind(version="v1", plural="secrets"),
    "ConfigMap": Kind(version="v1", plural="configmaps"),
    "Service": Kind(version="v1", plural="services"),
    "PersistentVolumeClaim": Kind(version="v1", plural="persistentvolumeclaims", kept=True),
    "NetworkPolicy": Kind(version="networking.k8s.io/v1", plural="networkpolicies"),
    "Deployment": Kind(version="apps/v1", plural="deployments"),
}
"""Every kind that a site is made of."""


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """A Secret that is made of files."""

    name: str
    files: tuple[Entry, ...]
    certificates: bool = False


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done about one object."""

    kind: str
    name: str
    mark: str
    """`+` is made, `~` is changed, `-` goes, `=` stays."""
    why: tuple[str, ...] = ()

    @property
    def lines(self) -> list[str]:
        """As a person reads it."""
        return [f"{self.mark} {self.kind} {self.name}", *(f"    {reason}" for reason in self.why)]


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """How a Deployment does."""

    name: str
    ready: bool
    reason: str = ""
    """What it waits for; empty: nothing that it says."""
    hopeless: bool = False
    """Whether waiting longer makes nothing ready."""


def prepared(
    objects: Sequence[Object], site: str, namespace: str = "", secrets: Sequence[Made] = ()
) -> list[Object]:
    """The objects that are applied, in their order: in another namespace, and with Secrets. Pure.

    Args:
        objects: of a site; not changed.
        site: its name.
        namespace: in place of the site's own; empty: that.
        secrets: to be made; pods that mount one are marked with what is in it.

    Raises:
        OSError: a secret's file cannot be read.
    """
    made = [moved(each, namespace) for each in objects]
    where = namespace_of(made)
    its_labels = {PART_OF: "skerry", INSTANCE: site}
    contents = {secret.name: content_name(secret.files, site) for secret in secrets}
    found = []
    for each in made:
        found.append(_marked(each, contents) if each["kind"] == "Deployment" else each)
        if each["kind"] == "Namespace":
            found += [_secret(secret, where, its_labels) for secret in secrets]
    return found


def namespace_of(objects: Iterable[Object]) -> str:
    """The namespace that they bring."""
    return str(next(each["metadata"]["name"] for each in objects if each["kind"] == "Namespace"))


def moved(each: Object, namespace: str) -> Object:
    """The object, in another namespace."""
    if not namespace:
        return each
    its = {**each["metadata"]}
    its["name" if each["kind"] == "Namespace" else "namespace"] = namespace
    return {**each, "metadata": its}


def kind_of(each: Object) -> Kind:
    """Where an object is in the API.

    Raises:
        ConfigError: it is of a kind that no site has.
    """
    kind = KINDS.get(each["kind"])
    if kind is None or kind.version != each["apiVersion"]:
        raise ConfigError(
            f"{each['apiVersion']} {each['kind']}: expected one of {', '.join(KINDS)}, got another kind"
        )
    return kind


def selector(site: str) -> str:
    """What is a site's, as the API server takes it."""
    return f"{PART_OF}=skerry,{INSTANCE}={site}"


def difference(live: Object | None, after: Object) -> Difference | None:
    """What applying does to an object; None: nothing.

    Args:
        live: what is there, None: nothing.
        after: what the server would have then, by its own word; or what is applied, where nothing is there.
    """
    named = {"kind": after["kind"], "name": after["metadata"]["name"]}
    if live is None:
        return Difference(mark="+", kind=named["kind"], name=named["name"])
    before, then = _ours(live), _ours(after)
    if before == then:
        return None
    why = _differences(before, then, hidden=after["kind"] == "Secret") or ["the order of a list"]
    return Difference(mark="~", kind=named["kind"], name=named["name"], why=tuple(why))


def gone(objects: Iterable[Object], there: Iterable[Object]) -> list[Object]:
    """What is there and no longer of the site, in the order of the flow."""
    names = {(each["kind"], each["metadata"]["name"]) for each in objects}
    left = [each for each in there if (each["kind"], each["metadata"]["name"]) not in names]
    return sorted(left, key=flow_place)


def flow_place(each: Object) -> tuple[int, str, str]:
    """Deployments first, as they end: who sends before who is sent to."""
    component = (each["metadata"].get("labels") or {}).get(COMPONENT, "")
    place = _FLOW.index(component) if component in _FLOW else 0
    if each["kind"] != "Deployment":
        place = len(_FLOW)
    return place, each["kind"], each["metadata"]["name"]


def conflicts(status: Object) -> list[str]:
    """Fields that somebody else owns, and who, from the server's answer 409."""
    causes = (status.get("details") or {}).get("causes") or []
    found = [
        f"{cause.get('field', '?')} is owned by {_owner(cause.get('message', ''))}"
        for cause in causes
        if cause.get("reason") == "FieldManagerConflict"
    ]
    return found or [str(status.get("message", "conflict"))]


def readiness(deployment: Object, pods: Sequence[Object] = (), events: Sequence[Object] = ()) -> Readiness:
    """How a Deployment does, from what the server says of it and of its pods. Pure.

    Args:
        deployment: as the server has it.
        pods: its pods.
        events: about those pods, the last one last.
    """
    name = deployment["metadata"]["name"]
    status = deployment.get("status") or {}
    replicas = deployment["spec"].get("replicas", 1)
    seen = status.get("observedGeneration", 0) >= deployment["metadata"].get("generation", 0)
    counts = [status.get(key, 0) for key in ("replicas", "updatedReplicas", "availableReplicas")]
    if seen and counts == [replicas] * 3:
        return Readiness(name=name, ready=True)
    conditions = {c["type"]: c for c in status.get("conditions") or []} if seen else {}
    failure = conditions.get("ReplicaFailure", {})
    if failure.get("status") == "True":
        return Readiness(name=name, ready=False, reason=failure.get("message", ""), hopeless=True)
    reasons = [found for pod in pods if (found := _pod(pod, events))]
    progress = conditions.get("Progressing", {})
    late = progress.get("reason") == "ProgressDeadlineExceeded"
    reason, hopeless = reasons[0] if reasons else (progress.get("message", "") if late else "", False)
    return Readiness(name=name, ready=False, reason=cleaned(reason), hopeless=hopeless or late)


def crashed(pods: Sequence[Object]) -> tuple[str, str] | None:
    """The pod and container that ended by itself and is not running, to ask for its last words."""
    for pod in pods:
        for its in _statuses(pod):
            before = its.get("lastState", {}).get("terminated")
            if before and "running" not in its.get("state", {}):
                return pod["metadata"]["name"], its["name"]
    return None


def _pod(pod: Object, events: Sequence[Object]) -> tuple[str, bool] | None:
    """What a pod waits for, and whether in vain; None: for nothing but time."""
    name = pod["metadata"]["name"]
    conditions = {c["type"]: c for c in pod.get("status", {}).get("conditions") or []}
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return f"pending: {scheduled.get('message', 'no node for it')}", False
    for its in _statuses(pod):
        waiting = its.get("state", {}).get("waiting") or {}
        reason = waiting.get("reason", "")
        if reason in _NO_PULL:
            said = f": {waiting['message']}" if waiting.get("message") else ""
            return f"cannot pull {its.get('image', '?')} ({reason}){said}", reason == "InvalidImageName"
        if reason == "CrashLoopBackOff":
            last = its.get("lastState", {}).get("terminated") or {}
            code = last.get("exitCode", "?")
            restarts = its.get("restartCount", 0)
            return (
                f"{its['name']} ends again and again, exit code {code}, {restarts} restarts",
                restarts >= _CRASHES,
            )
        if reason and reason not in ("ContainerCreating", "PodInitializing"):
            return f"{its['name']}: {reason}: {waiting.get('message', '')}".rstrip(": "), False
    told = [
        e.get("message", "")
        for e in events
        if e.get("type") == "Warning" and (e.get("involvedObject") or {}).get("name") == name
    ]
    return (told[-1], False) if told else None


def _statuses(pod: Object) -> list[Object]:
    status = pod.get("status", {})
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def _secret(secret: Made, namespace: str, its_labels: Mapping[str, str]) -> Object:
    data = {}
    for file in secret.files:
        content = file.content if isinstance(file.content, bytes) else _read(file)
        data[file.name] = base64.b64encode(content).decode()
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": secret.name, "namespace": namespace, "labels": dict(its_labels)},
        "type": "kubernetes.io/tls" if secret.certificates else "Opaque",
        "data": data,
    }


def _read(file: Entry) -> bytes:
    assert file.content is not None  # a secret has no folders
    assert not isinstance(file.content, bytes)
    return file.content.read_bytes()


def _marked(deployment: Object, contents: Mapping[str, str]) -> Object:
    """A Deployment whose pods say which secrets they have."""
    template = deployment["spec"]["template"]
    mounted = [
        volume["secret"]["secretName"] for volume in template["spec"].get("volumes", ()) if "secret" in volume
    ]
    said = ",".join(f"{name}={contents[name]}" for name in mounted if name in contents)
    if not said:
        return deployment
    meta = template.get("metadata", {})
    annotations = {**meta.get("annotations", {}), SECRETS_ANNOTATION: said}
    template = {**template, "metadata": {**meta, "annotations": annotations}}
    return {**deployment, "spec": {**deployment["spec"], "template": template}}


def _ours(each: Object) -> Object:
    """An object without what the server writes itself."""
    its = {key: value for key, value in each["metadata"].items() if key not in _OF_THE_SERVER}
    annotations = {
        k: v
        for k, v in (its.pop("annotations", None) or {}).items()
        if not k.startswith("deployment.kubernetes.io/")
    }
    if annotations:
        its["annotations"] = annotations
    rest = {
        key: value for key, value in each.items() if key not in ("metadata", "status", "apiVersion", "kind")
    }
    return {"metadata": its, **rest}


def _differences(before: Object, after: Object, *, hidden: bool) -> list[str]:
    old, new = dict(_flat(before)), dict(_flat(after))
    found = []
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) == new.get(key):
            continue
        secret = hidden and key.split(".")[0] in ("data", "stringData")
        a, b = (_HIDDEN if secret and key in its else _said(its.get(key)) for its in (old, new))
        found.append(f"{key}: {a} -> {b}")
    return found


def _flat(raw: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value by its path; what has a name goes by it, and a module's settings are read."""
    match raw:
        case {"name": "SKERRY_SETTINGS", "value": str(text)}:
            yield from _settings(text, path)
        case dict() if raw:
            for key, value in raw.items():
                yield from _flat(value, f"{path}.{key}".removeprefix("."))
        case list() if raw:
            for n, value in enumerate(raw):
                name = value.get("name", n) if isinstance(value, dict) else n
                yield from _flat(value, f"{path}[{name}]")
        case _:
            yield path, raw


def _settings(text: str, path: str) -> Iterator[tuple[str, Any]]:
    try:
        yield from _flat(json.loads(text), path)
    except ValueError:
        yield path, text


def _said(value: Any) -> str:
    if value is None:
        return "nothing"
    text = cleaned(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _owner(message: str) -> str:
    """Who it is, from `conflict with "NAME" using apps/v1`."""
    parts = message.split('"')
    return parts[1] if len(parts) > 2 else message or "somebody"
