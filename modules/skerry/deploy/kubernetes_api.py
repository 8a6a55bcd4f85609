"""A cluster that is brought to what a site wants, by server-side apply. No other file imports `kubernetes`.

Source: https://kubernetes.io/docs/reference/using-api/api-concepts/
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import urllib3
import yaml
from kubernetes import client, config, dynamic
from kubernetes.client.exceptions import OpenApiException
from kubernetes.dynamic.exceptions import DynamicApiError, NotFoundError

from skerry.deploy.cluster import (
    INSTANCE,
    KINDS,
    MANAGER,
    PART_OF,
    Difference,
    Object,
    Readiness,
    conflicts,
    crashed,
    difference,
    gone,
    kind_of,
    namespace_of,
    readiness,
    selector,
)
from skerry.deploy.containers import kept_in
from skerry.errors import ConfigError, Unavailable
from skerry.redact import cleaned

Say = Callable[[str], None]

_TIMEOUT_S = 30
_POLL_S = 1.0
_LONGEST = 300
"""Characters of a log's line that are shown."""


class Cluster:
    """An API server, with the rights of a kubeconfig's user.

    Args:
        api: the client, told where and as whom.
        force: whether fields that somebody else owns are taken over.
    """

    def __init__(self, api: client.ApiClient, *, force: bool = False) -> None:
        self._api = api
        self._force = force
        self._address = api.configuration.host
        # Our kinds are known, so the server is not asked for its own; asking would also leave a file in /tmp.
        self._requests = dynamic.DynamicClient(api, discoverer=lambda *_: None)

    def close(self) -> None:
        """Let go of its connections."""
        self._api.rest_client.close()

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """One object; None: there is none.

        Raises:
            Unavailable: the server does not answer, or refuses.
        """
        return self._asked(f"{kind} {name}", "get", KINDS[kind].path(namespace, name))

    def is_of_site(self, each: Object, site: str) -> bool:
        """Whether an object says that it is this site's."""
        its = each["metadata"].get("labels") or {}
        return all(f"{key}={its.get(key)}" in selector(site).split(",") for key in (PART_OF, INSTANCE))

    def of_site(self, namespace: str, site: str) -> list[Object]:
        """Everything of a site in a namespace.

        Raises:
            Unavailable: the server does not answer, or refuses.
        """
        found: list[Object] = []
        for name, kind in KINDS.items():
            if kind.namespaced:
                answer = self._asked(name, "get", kind.path(namespace), label_selector=selector(site)) or {}
                # The server does not repeat in a list what the list is of.
                found += [
                    {**item, "kind": name, "apiVersion": kind.version} for item in answer.get("items") or []
                ]
        return found

    def differences(
        self, objects: Sequence[Object], site: str, brought: Sequence[str] = ()
    ) -> tuple[list[Difference], list[Object]]:
        """What applying would do, by the server's own word, and what would go. Nothing is changed.

        Args:
            objects: that the site has.
            site: its name.
            brought: names of Secrets that it needs and somebody else keeps.

        Raises:
            ConfigError: fields that somebody else owns, each with its owner; or an object that the server
                does not take.
            Unavailable: the server does not answer, or refuses.
        """
        namespace = namespace_of(objects)
        there = self.get("Namespace", namespace, namespace)
        if there is None:
            return [d for each in objects if (d := difference(None, each)) is not None], []
        problems: list[str] = []
        found: list[Difference] = []
        for each in objects:
            live = self.get(each["kind"], namespace, each["metadata"]["name"])
            try:
                after = self._apply(each, namespace, dry=True)
            except ConfigError as error:
                problems += error.problems
                continue
            if (its := difference(live, after)) is not None:
                found.append(its)
        if problems:
            raise ConfigError(problems)
        there_of_it = self.of_site(namespace, site)
        left = [
            each
            for each in gone(objects, there_of_it)
            if each["kind"] != "Secret" or each["metadata"]["name"] not in brought
        ]
        for each in left:
            mark, name = "=" if KINDS[each["kind"]].kept else "-", each["metadata"]["name"]
            why = (f"stays, with {kept_in(name)}",) if mark == "=" else ()
            found.append(Difference(mark=mark, kind=each["kind"], name=name, why=why))
        return found, [each for each in left if not KINDS[each["kind"]].kept]

    def apply(self, objects: Sequence[Object], found: Sequence[Difference], say: Say) -> None:
        """Apply the objects that differ.

        Raises:
            ConfigError: as `differences`.
            Unavailable: the server does not answer, or refuses. Running again goes on from there.
        """
        differ = {(d.kind, d.name) for d in found if d.mark in "+~"}
        namespace = namespace_of(objects)
        for each in objects:
            its = each["kind"], each["metadata"]["name"]
            if its in differ:
                say(f"apply {its[0]} {its[1]}")
                self._apply(each, namespace, dry=False)

    def delete(self, each: Object, namespace: str, say: Say, seconds: float = 0.0) -> None:
        """Delete an object; of a Deployment, wait until its pods have ended, which is while they drain.

        Args:
            each: the object.
            namespace: where it is.
            say: told of it.
            seconds: how long to wait at most.

        Raises:
            Unavailable: the server does not answer, or refuses, or a pod has not ended in that time.
        """
        kind, name = each["kind"], each["metadata"]["name"]
        say(f"delete {kind} {name}")
        path = KINDS[kind].path(namespace, name)
        self._asked(f"{kind} {name}", "delete", path, propagation_policy="Background")
        if kind != "Deployment":
            return
        deadline = time.monotonic() + seconds
        while self._pods(each, namespace):
            if time.monotonic() >= deadline:
                if seconds:
                    raise Unavailable(f"Deployment {name}: expected its pods to end within {seconds:g} s")
                return
            time.sleep(_POLL_S)

    def wait(self, objects: Sequence[Object], seconds: float, say: Say) -> None:
        """Wait until every Deployment is ready, and say so as each gets there.

        Raises:
            Unavailable: one of them is not, and why, as far as the cluster says.
        """
        namespace = namespace_of(objects)
        names = [each["metadata"]["name"] for each in objects if each["kind"] == "Deployment"]
        begin = time.monotonic()
        seen: dict[str, str] = {}
        while True:
            found = [self._readiness(name, namespace) for name in names]
            for its in found:
                state = "ready" if its.ready else its.reason or "waiting"
                if seen.get(its.name) != state:
                    seen[its.name] = state
                    say(f"{its.name:12} {state}  {time.monotonic() - begin:.0f} s")
            left = [its for its in found if not its.ready]
            if not left:
                return
            late = time.monotonic() - begin >= seconds
            if late or any(its.hopeless for its in left):
                limit = f" within {seconds:g} s" if late else ""
                shown = left if late else [its for its in left if its.hopeless]
                raise Unavailable(
                    "\n".join(
                        f"Deployment {its.name}: expected it ready{limit}, got: {its.reason or 'waiting'}"
                        for its in shown
                    )
                )
            time.sleep(_POLL_S)

    def _readiness(self, name: str, namespace: str) -> Readiness:
        deployment = self.get("Deployment", namespace, name)
        if deployment is None:
            return Readiness(name=name, ready=False, reason="it is gone: somebody deleted it", hopeless=True)
        its = readiness(deployment)
        if its.ready:
            return its
        pods = self._pods(deployment, namespace)
        answer = self._asked("events", "get", f"/api/v1/namespaces/{namespace}/events") or {}
        events = sorted(answer.get("items") or [], key=lambda e: str(e.get("lastTimestamp") or ""))
        its = readiness(deployment, pods, events)
        dead = crashed(pods)
        words = self._last_words(namespace, *dead) if dead and its.reason else ""
        if words:
            return Readiness(
                name=its.name, ready=False, reason=f"{its.reason}: {words}", hopeless=its.hopeless
            )
        return its

    def _pods(self, deployment: Object, namespace: str) -> list[Object]:
        labels = deployment["spec"]["selector"]["matchLabels"]
        chosen = ",".join(f"{key}={value}" for key, value in labels.items())
        answer = self._asked("pods", "get", f"/api/v1/namespaces/{namespace}/pods", label_selector=chosen)
        return (answer or {}).get("items") or []

    def _last_words(self, namespace: str, pod: str, container: str) -> str:
        """The last line that a container logged before it ended; empty: there is none any more."""
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/log"
        query = [("container", container), ("previous", "true"), ("tailLines", "1")]
        try:
            text = self._requests.request(
                "get", path, query_params=query, serialize=False, _request_timeout=_TIMEOUT_S
            ).data.decode(errors="replace")
        except (DynamicApiError, urllib3.exceptions.HTTPError, OpenApiException):
            return ""  # the engine has thrown it away already; the reason is told without it
        last = text.strip().splitlines()[-1:]
        return cleaned(last[0])[:_LONGEST] if last else ""

    def _apply(self, each: Object, namespace: str, *, dry: bool) -> Object:
        what = f"{each['kind']} {each['metadata']['name']}"
        path = kind_of(each).path(namespace, each["metadata"]["name"])
        answer = self._asked(
            what, "patch", path, body=each, content_type="application/apply-patch+yaml",
            field_manager=MANAGER, force_conflicts="true" if self._force else "false",
            **({"dry_run": "All"} if dry else {}),
        )  # fmt: skip
        if answer is None:
            raise Unavailable(f"{what}: the cluster at {self._address} has no namespace {namespace}")
        return answer

    def _asked(self, what: str, method: str, path: str, **more: Any) -> Object | None:
        """An answer as plain data; None: there is no such thing.

        Raises:
            ConfigError: the server does not take the object, or somebody else owns a field of it.
            Unavailable: it does not answer, or refuses.
        """
        try:
            response = self._requests.request(
                method, path, serialize=False, _request_timeout=_TIMEOUT_S, header_params={}, query_params=[],
                **more,
            )  # fmt: skip
            answer: Object = json.loads(response.data)
            return answer
        except NotFoundError:
            return None
        except DynamicApiError as error:
            raise self._refused(what, error) from error
        except (urllib3.exceptions.HTTPError, OpenApiException, OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise Unavailable(f"{what}: the cluster at {self._address} does not answer: {reason}") from error

    def _refused(self, what: str, error: DynamicApiError) -> Exception:
        status = _status(error)
        if error.status == 409 and (status.get("details") or {}).get("causes"):
            return ConfigError(
                [f"{what}: {conflict} (--force-conflicts takes it)" for conflict in conflicts(status)]
            )
        said = status.get("message") or error.reason
        if error.status in (400, 422):
            return ConfigError(f"{what}: the cluster does not take it: {said}")
        hint = {
            401: " (the kubeconfig's user is not known there)",
            403: " (the kubeconfig's user may not)",
            409: " (run it again)",
        }.get(error.status, "")
        return Unavailable(f"{what}: the cluster at {self._address} says {error.status}: {said}{hint}")


def connect(kubeconfig: Path | None, context: str | None, *, force: bool = False) -> Cluster:
    """The cluster of a kubeconfig; None: that of KUBECONFIG, else of ~/.kube/config.

    Raises:
        ConfigError: there is no such file or context, or it makes no sense.
    """
    try:
        api = config.new_client_from_config(
            config_file=None if kubeconfig is None else str(kubeconfig), context=context, persist_config=False
        )
    except (config.ConfigException, OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        given = kubeconfig or "KUBECONFIG or ~/.kube/config"
        raise ConfigError(
            f"--kubeconfig: expected a kubeconfig, got {given}: {error} (on a k3s server: "
            "/etc/rancher/k3s/k3s.yaml)"
        ) from error
    return Cluster(api, force=force)


def _status(error: DynamicApiError) -> Object:
    """The server's answer in its own words."""
    try:
        found = json.loads(error.body or "")
    except (TypeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
