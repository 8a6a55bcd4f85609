"""Enough of a Kubernetes API server for a real client: TLS, client certificates, server-side apply with
owners of fields, dry runs, pods that get ready or stay ill. No pod ever runs.

What it takes is checked against Kubernetes' own schemas. Of server-side apply it has: owners of leaves,
conflicts, shared ownership of equal values, and removal of what an owner no longer says. Lists are merged by
the keys that Kubernetes has for ours; the rest are one value.

Source: https://kubernetes.io/docs/reference/using-api/server-side-apply/
"""

from __future__ import annotations

import base64
import copy
import json
import ssl
import sys
import threading
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qs, urlsplit

import kubernetes_validate
import yaml

from authority import Authority

Object = dict[str, Any]
Leaf = tuple[Any, ...]

VERSION = "1.36.0"
POLLS = 2
"""How often somebody asks before a new pod is ready, and before a deleted one is gone."""
_KEYS = {
    "containers": "name", "initContainers": "name", "env": "name", "volumes": "name",
    "volumeMounts": "mountPath", "ports": "containerPort",
}  # fmt: skip


class Request(NamedTuple):
    """A request that came."""

    method: str
    path: str
    query: dict[str, str]

    @property
    def writes(self) -> bool:
        """Whether it is meant to change something."""
        return self.method != "GET" and "dryRun" not in self.query


class KubernetesServer:
    """The server, on a port of the loopback interface.

    Args:
        folder: for its certificates and its kubeconfig.

    Attributes:
        kubeconfig: who may come in, and where, as k3s writes it.
        objects: by path in the API.
        requests: all that came.
        ill: by name of a Deployment: why its pods do not get ready.
        refuse: by the name of a kind in paths: the status that is answered.
    """

    def __init__(self, folder: Path) -> None:
        self.objects: dict[str, Object] = {}
        self.owners: dict[str, dict[Leaf, set[str]]] = {}
        self.requests: list[Request] = []
        self.ill: dict[str, Object] = {}
        self.refuse: dict[str, int] = {}
        self.logs: dict[str, str] = {}
        self._polls: dict[str, int] = {}
        self._ending: dict[str, tuple[Object, int]] = {}
        self._lock = threading.Lock()
        self._versions = 0
        authority = Authority(folder)
        certificate, key = authority.issue("server", "127.0.0.1")
        client, client_key = authority.issue("admin")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(authority.ca)
        context.verify_mode = ssl.CERT_REQUIRED
        stub = self

        class Handler(_Handler):
            server_of = stub

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self.kubeconfig = folder / "kubeconfig"
        self.kubeconfig.write_text(yaml.safe_dump(self._kubeconfig(authority.ca, client, client_key)))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def named(self, kind: str) -> dict[str, Object]:
        """Objects of a kind by name."""
        with self._lock:
            found = [copy.deepcopy(o) for o in self.objects.values() if o["kind"] == kind]
        return {o["metadata"]["name"]: o for o in found}

    def set_by(self, manager: str, kind: str, name: str, leaf: Leaf, value: Any) -> None:
        """Somebody else changes a field, and owns it from now on."""
        with self._lock:
            path = next(
                p for p, o in self.objects.items() if o["kind"] == kind and o["metadata"]["name"] == name
            )
            leaves = _leaves(self.objects[path])
            leaves[leaf] = value
            self._write(path, _tree(leaves), self.objects[path])
            self.owners[path][leaf] = {manager}

    def writes(self) -> list[Request]:
        """The requests that were meant to change something, and are forgotten now."""
        found = [request for request in self.requests if request.writes]
        self.requests.clear()
        return found

    def answer(self, request: Request, body: Object | None) -> tuple[int, Object | str]:
        """The status, and an object or text."""
        with self._lock:
            self.requests.append(request)
            parts = request.path.strip("/").split("/")
            for kind, status in self.refuse.items():
                if kind in parts:
                    return status, _status(status, f"{kind} is forbidden: no rights")
            if parts[-1] == "log":
                return 200, self.logs.get(parts[-2], "")
            if parts[-1] in ("pods", "events"):
                return 200, {"kind": "List", "items": self._observed(request, parts[-1], parts[-2])}
            match request.method:
                case "GET":
                    return self._get(request)
                case "PATCH" if body is not None:
                    return self._apply(request, body)
                case "DELETE":
                    return self._delete(request.path)
        return 405, _status(405, request.method)

    def _get(self, request: Request) -> tuple[int, Object]:
        if request.path in self.objects:
            found = copy.deepcopy(self.objects[request.path])
            if found["kind"] == "Deployment":
                found["status"] = self._deployment_status(found)
            return 200, found
        below = [o for path, o in self.objects.items() if path.rpartition("/")[0] == request.path]
        if below or "labelSelector" in request.query:
            wanted = _selector(request.query.get("labelSelector", ""))
            items = [
                {k: v for k, v in o.items() if k not in ("kind", "apiVersion")}
                for o in below
                if wanted.items() <= (o["metadata"].get("labels") or {}).items()
            ]
            return 200, {"kind": "List", "items": copy.deepcopy(items)}
        return 404, _status(404, f"{request.path} not found")

    def _apply(self, request: Request, body: Object) -> tuple[int, Object]:
        path, manager = request.path, request.query["fieldManager"]
        namespace = (body["metadata"]).get("namespace")
        if namespace and f"/api/v1/namespaces/{namespace}" not in self.objects:
            return 404, _status(404, f'namespaces "{namespace}" not found')
        wrong = _invalid(json.dumps(body))
        if wrong:
            return 422, _status(422, f"{body['kind']} is invalid: {wrong}")
        live = self.objects.get(path)
        before, said = _leaves(live or {}), _leaves(body)
        owners = copy.deepcopy(self.owners.get(path, {}))
        conflicts = {
            leaf: sorted(owners[leaf] - {manager})
            for leaf, value in said.items()
            if leaf in before and before[leaf] != value and owners.get(leaf, set()) - {manager}
        }
        if conflicts and request.query.get("force") != "true":
            return 409, _conflict(conflicts)
        for leaf, its in list(owners.items()):
            if leaf not in said and manager in its:
                its.discard(manager)
                if not its:
                    before.pop(leaf, None)
                    del owners[leaf]
        for leaf, value in said.items():
            same = leaf in before and before[leaf] == value
            owners[leaf] = (owners.get(leaf, set()) if same else set()) | {manager}
            before[leaf] = value
        after = _defaulted(_tree(before))
        if "dryRun" in request.query:
            return 200, self._stamped(after, live)
        created = live is None
        self._write(path, after, live)
        self.owners[path] = owners
        return (201 if created else 200), copy.deepcopy(self.objects[path])

    def _write(self, path: str, after: Object, live: Object | None) -> None:
        self.objects[path] = self._stamped(after, live)
        if live is None or live.get("spec") != after.get("spec"):
            self._polls[path] = POLLS

    def _stamped(self, after: Object, live: Object | None) -> Object:
        """With what a server writes itself."""
        meta = dict(after["metadata"])
        was = (live or {}).get("metadata", {})
        changed = live is None or live.get("spec") != after.get("spec")
        meta["generation"] = was.get("generation", 0) + int(changed)
        self._versions += 1
        meta["resourceVersion"] = str(self._versions)
        meta["uid"] = was.get("uid", f"uid-{self._versions}")
        meta["managedFields"] = [{"manager": "somebody", "time": str(self._versions)}]
        return {**after, "metadata": meta}

    def _delete(self, path: str) -> tuple[int, Object]:
        found = self.objects.pop(path, None)
        self.owners.pop(path, None)
        if found is None:
            return 404, _status(404, f"{path} not found")
        if found["kind"] == "Deployment":
            self._ending[path] = found, POLLS
        if found["kind"] == "Namespace":
            below = f"{path}/"
            its = f"/namespaces/{found['metadata']['name']}/"
            for other in [p for p in self.objects if p.startswith(below) or its in p]:
                del self.objects[other]
        return 200, {"kind": "Status", "status": "Success"}

    def _deployment_status(self, deployment: Object) -> Object:
        path = f"/apis/apps/v1/namespaces/{deployment['metadata']['namespace']}/deployments/" + (
            name := deployment["metadata"]["name"]
        )
        left = self._polls.get(path, 0)
        self._polls[path] = max(0, left - 1)
        if left > 1:
            return {"observedGeneration": deployment["metadata"]["generation"] - 1}
        if left == 1 or name in self.ill:
            return {
                "observedGeneration": deployment["metadata"]["generation"], "replicas": 1,
                "updatedReplicas": 1, "conditions": self.ill.get(name, {}).get("conditions", []),
            }  # fmt: skip
        return {
            "observedGeneration": deployment["metadata"]["generation"], "replicas": 1,
            "updatedReplicas": 1, "availableReplicas": 1,
        }  # fmt: skip

    def _observed(self, request: Request, what: str, namespace: str) -> list[Object]:
        if what == "events":
            return [
                {**event, "involvedObject": {"name": f"{name}-pod"}}
                for name, its in self.ill.items()
                for event in its.get("events", [])
            ]
        wanted = _selector(request.query.get("labelSelector", ""))
        for path, (gone, left) in list(self._ending.items()):
            if gone["spec"]["selector"]["matchLabels"] == wanted:
                if left == 0:
                    del self._ending[path]
                else:
                    self._ending[path] = gone, left - 1
                    return [{"metadata": {"name": f"{gone['metadata']['name']}-pod"}}]
        return [
            {
                "metadata": {"name": f"{o['metadata']['name']}-pod"},
                "status": self.ill.get(o["metadata"]["name"], {}).get("pod", {}),
            }
            for o in self.objects.values()
            if o["kind"] == "Deployment"
            and o["metadata"]["namespace"] == namespace
            and o["spec"]["selector"]["matchLabels"] == wanted
        ]

    def _kubeconfig(self, ca: Path, client: Path, key: Path) -> Object:
        encoded = [base64.b64encode(path.read_bytes()).decode() for path in (ca, client, key)]
        cluster = {
            "server": f"https://127.0.0.1:{self._server.server_address[1]}",
            "certificate-authority-data": encoded[0],
        }
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "default", "cluster": cluster}],
            "users": [
                {
                    "name": "default",
                    "user": {"client-certificate-data": encoded[1], "client-key-data": encoded[2]},
                }
            ],
            "contexts": [{"name": "default", "context": {"cluster": "default", "user": "default"}}],
            "current-context": "default",
        }


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # strangers without a certificate, and who hangs up
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet: the kernel would hold the second one back
    server_of: KubernetesServer

    def _go(self) -> None:
        parts = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = Request(self.command, parts.path, query)
        patch = self.headers.get("Content-Type") == "application/apply-patch+yaml"
        if self.command == "PATCH" and not patch:
            status, said = 415, _status(415, "only apply patches")
        else:
            status, said = self.server_of.answer(request, yaml.safe_load(body) if patch else None)
        raw = said.encode() if isinstance(said, str) else json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(said, str) else "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    do_GET = do_PATCH = do_DELETE = do_POST = do_PUT = _go  # noqa: N815 - the names that the base class calls

    def log_message(self, *_: object) -> None:
        pass


@cache
def _invalid(text: str) -> str:
    """What Kubernetes' schemas say of an object; the same ones come again and again."""
    try:
        kubernetes_validate.validate(json.loads(text), VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        return str(error.message)
    return ""


def _status(code: int, message: str, causes: list[Object] | None = None) -> Object:
    return {
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message,
        **({"details": {"causes": causes}} if causes else {}),
    }  # fmt: skip


def _conflict(found: dict[Leaf, list[str]]) -> Object:
    causes = [
        {
            "reason": "FieldManagerConflict",
            "message": f'conflict with "{owner}" using apps/v1',
            "field": "." + ".".join(str(part) for part in leaf),
        }
        for leaf, owners in found.items()
        for owner in owners
    ]
    return _status(409, f"Apply failed with {len(causes)} conflicts", causes)


def _selector(text: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in text.split(",") if part)


def _leaves(raw: Any, path: Leaf = ()) -> dict[Leaf, Any]:
    """Every value by its path, of which the keys of a list's items are part."""
    if not path:
        if not raw:
            return {}
        raw = {**raw, "metadata": _said(raw["metadata"])}
        raw.pop("status", None)
    if isinstance(raw, dict) and raw:
        return {k: v for key, value in raw.items() for k, v in _leaves(value, (*path, key)).items()}
    key = _KEYS.get(str(path[-1])) if path else None
    if isinstance(raw, list) and raw and key and all(isinstance(i, dict) and key in i for i in raw):
        return {k: v for item in raw for k, v in _leaves(item, (*path, _Item(key, item[key]))).items()}
    return {path: raw}


class _Item(NamedTuple):
    key: str
    value: Any

    def __str__(self) -> str:
        return f'[{self.key}="{self.value}"]'


def _said(metadata: Object) -> Object:
    server = ("managedFields", "resourceVersion", "generation", "uid")
    return {key: value for key, value in metadata.items() if key not in server}


def _tree(leaves: dict[Leaf, Any]) -> Object:
    """The object of these leaves."""
    root: Object = {}
    for leaf, value in leaves.items():
        _put(root, leaf, value)
    return root


def _put(into: Any, leaf: Leaf, value: Any) -> None:
    step, rest = leaf[0], leaf[1:]
    if isinstance(step, _Item):
        found = next((i for i in into if i.get(step.key) == step.value), None)
        if found is None:
            found = {step.key: step.value}
            into.append(found)
        _put(found, rest, value)
    elif rest:
        below = into.setdefault(step, [] if isinstance(rest[0], _Item) else {})
        _put(below, rest, value)
    else:
        into[step] = copy.deepcopy(value)


def _defaulted(each: Object) -> Object:
    """With some of the fields that a server fills in."""
    if each["kind"] == "Deployment":
        pod = each["spec"]["template"]["spec"]
        pod.setdefault("restartPolicy", "Always")
        pod.setdefault("dnsPolicy", "ClusterFirst")
        for container in pod["containers"]:
            container.setdefault("terminationMessagePath", "/dev/termination-log")
    if each["kind"] == "Service":
        each["spec"].setdefault("clusterIP", "10.43.0.7")
    return each
