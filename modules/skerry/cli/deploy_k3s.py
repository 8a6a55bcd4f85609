"""`skerry deploy k3s`: a site on a cluster, as an alternative to `kubectl apply -k`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from skerry.cli.deploy import CODES, MISSING, add_common, certificate_problems, say
from skerry.cli.render import read_deployment, refuse
from skerry.deploy.archive import Entry, entries
from skerry.deploy.cluster import (
    KINDS,
    Difference,
    Made,
    Object,
    flow_place,
    namespace_of,
    prepared,
    selector,
)
from skerry.deploy.containers import kept_in
from skerry.deploy.deployment import Deployment
from skerry.deploy.k3s import objects
from skerry.deploy.k3s_pods import SecretKeys, secrets
from skerry.errors import ConfigError, Unavailable

if TYPE_CHECKING:
    from skerry.deploy.kubernetes_api import Cluster


def add_parser(where: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add the parser of `skerry deploy k3s`, and return it."""
    parser = where.add_parser(
        "k3s",
        help="a k3s cluster, or another Kubernetes",
        description="Apply the objects of `skerry render k3s` to a cluster (server-side apply, as the field "
        "manager skerry), with the Secrets made of folders here, delete what the site no longer has, and "
        "wait until everything is ready.",
        epilog=f"{CODES}\nexample: skerry deploy k3s sites/demo.yaml --certificates certs "
        "--kubeconfig /etc/rancher/k3s/k3s.yaml",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common(parser)
    parser.add_argument(
        "--kubeconfig", type=Path, default=None, metavar="F",
        help="who and where (default: KUBECONFIG, else ~/.kube/config; k3s writes /etc/rancher/k3s/k3s.yaml)",
    )  # fmt: skip
    parser.add_argument("--context", default=None, metavar="C", help="of the kubeconfig (default: its own)")
    parser.add_argument(
        "--namespace", default="", metavar="N", help="in place of skerry-SITE; made if it is not there"
    )
    parser.add_argument(
        "--force-conflicts", action="store_true", help="take over fields that somebody else has set"
    )
    parser.set_defaults(func=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Bring a cluster to what the site says; returns the exit code.

    Raises:
        ConfigError: the site file, or what belongs to it, is wrong, or somebody else owns a field.
        Unavailable: the cluster does not answer or refuses, a Secret is missing, or a pod does not get ready.
    """
    its = read_deployment(arguments, "k3s")
    site = its.plan.site
    if arguments.remove:
        return _remove(site, arguments, namespace_of(objects(its)))
    if arguments.state:
        raise ConfigError("--state: expected it with --remove, got it alone")
    refuse(its, arguments.site)
    made, brought = _secrets(its, arguments)
    try:
        wanted = prepared(objects(its), site, arguments.namespace, made)
    except OSError as error:
        raise Unavailable(f"{error.filename}: {error.strerror}") from error
    cluster = _cluster(arguments)
    try:
        if arguments.namespace:
            _refuse_shared(cluster, arguments.namespace, site)
        _refuse_missing(cluster, namespace_of(wanted), brought)
        found, left = cluster.differences(wanted, site, [secret.name for secret in brought])
        _print(found)
        if arguments.diff:
            return int(_changes(found))
        _make(cluster, wanted, found, left, arguments.wait)
    finally:
        cluster.close()
    return 0


def _make(
    cluster: Cluster,
    wanted: Sequence[Object],
    found: Sequence[Difference],
    left: Sequence[Object],
    wait: float,
) -> None:
    """Those that go end first, so that a camera or a name is free; what they used goes last."""
    namespace = namespace_of(wanted)
    for each in left:
        if each["kind"] == "Deployment":
            cluster.delete(each, namespace, say, wait)
    cluster.apply(wanted, found, say)
    if wait:
        cluster.wait(wanted, wait, say)
    for each in left:
        if each["kind"] != "Deployment":
            cluster.delete(each, namespace, say)


def _remove(site: str, arguments: argparse.Namespace, own: str) -> int:
    """Delete in the order of the flow; each drains before the next one ends."""
    namespace = arguments.namespace or own
    cluster = _cluster(arguments)
    try:
        there = sorted(cluster.of_site(namespace, site), key=flow_place)
        kept = [] if arguments.state else [each for each in there if KINDS[each["kind"]].kept]
        going = [each for each in there if each not in kept]
        its_namespace = cluster.get("Namespace", "", namespace) if arguments.state else None
        if its_namespace is not None and cluster.is_of_site(its_namespace, site):
            going.append({**its_namespace, "kind": "Namespace"})
        found = [Difference(kind=e["kind"], name=e["metadata"]["name"], mark="-") for e in going]
        for each in kept:
            name = each["metadata"]["name"]
            why = (f"stays, with {kept_in(name)} (--state deletes it)",)
            found.append(Difference(kind=each["kind"], name=name, mark="=", why=why))
        _print(found)
        if arguments.diff:
            return int(_changes(found))
        for each in going:
            cluster.delete(each, namespace, say, arguments.wait)
    finally:
        cluster.close()
    return 0


def _cluster(arguments: argparse.Namespace) -> Cluster:
    try:
        from skerry.deploy.kubernetes_api import connect  # noqa: PLC0415 - the one command that needs it
    except ImportError as error:
        raise Unavailable(MISSING.format(name=error.name)) from error
    return connect(arguments.kubeconfig, arguments.context, force=arguments.force_conflicts)


def _secrets(its: Deployment, arguments: argparse.Namespace) -> tuple[list[Made], list[SecretKeys]]:
    """The Secrets that are made of folders here, and those that must be on the cluster already.

    Raises:
        ConfigError: with every file that is missing or wrong.
    """
    made: list[Made] = []
    brought: list[SecretKeys] = []
    problems: list[str] = []
    if its.secure and arguments.certificates is not None:
        names = [container.name for container in its.containers if container.identity]
        problems += certificate_problems(arguments.certificates, names)
    for secret in secrets(its):
        folder: Path | None = arguments.certificates if secret.certificates else arguments.secrets
        if folder is None:
            brought.append(secret)
            continue
        if secret.certificates and problems:
            continue
        files: list[Entry] = []
        for key, path in secret.keys.items():
            file = folder / (path if secret.certificates else key)
            try:
                files += entries(key, file, private=True)
            except OSError as error:
                reason = (error.strerror or "an error").lower()
                problems.append(f"--secrets: expected {key} in {file}, got {reason}")
        made.append(Made(name=secret.name, files=tuple(files), certificates=secret.certificates))
    if problems:
        raise ConfigError(problems)
    return made, brought


def _refuse_shared(cluster: Cluster, namespace: str, site: str) -> None:
    """Raise where a namespace has something else in it: our policies would cut it off, and --state delete it.

    Raises:
        ConfigError: it is there, and not this site's.
        Unavailable: the cluster does not answer.
    """
    there = cluster.get("Namespace", "", namespace)
    if there is not None and not cluster.is_of_site(there, site):
        labels = selector(site).replace(",", " ")
        raise ConfigError(
            f"--namespace: expected one of the site {site}, or none, got {namespace} of somebody else "
            f"(a site shares no namespace; if it is empty: kubectl label namespace {namespace} {labels})"
        )


def _refuse_missing(cluster: Cluster, namespace: str, brought: Sequence[SecretKeys]) -> None:
    """Raise where a Secret is neither on the cluster nor made by us.

    Raises:
        Unavailable: with each.
    """
    problems = list(_missing(cluster, namespace, brought))
    if problems:
        raise Unavailable("\n".join(problems))


def _missing(cluster: Cluster, namespace: str, brought: Sequence[SecretKeys]) -> Iterator[str]:
    for secret in brought:
        there = cluster.get("Secret", namespace, secret.name)
        bring = "--certificates DIR, or --plain-bus" if secret.certificates else "--secrets DIR"
        if there is None:
            yield f"Secret {secret.name}: expected it in {namespace}, got none ({bring}, or kubectl create)"
            continue
        missing = sorted(set(secret.keys) - set(there.get("data") or {}))
        if missing:
            yield f"Secret {secret.name}: expected the keys {', '.join(missing)} too, got none ({bring})"


def _changes(found: Sequence[Difference]) -> bool:
    return any(difference.mark != "=" for difference in found)


def _print(found: Sequence[Difference]) -> None:
    for difference in found:
        for line in difference.lines:
            print(line)
    if not _changes(found):
        print("nothing to do")
