"""`skerry deploy k3s` with the real client over TLS, against a stand-in: no real cluster was at hand."""

from __future__ import annotations

import base64
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from kubernetes_server import KubernetesServer
from needs import ROOT
from skerry.cli import main

NAMESPACE = "skerry-demo"
DEPLOYMENTS = {"broker", "uplink", "buffer", "decision", "vision"}
FROM = ("spec", "template", "spec")


class Site(NamedTuple):
    """A site file, its certificates and the cluster that it goes to."""

    server: KubernetesServer
    file: Path
    certificates: Path
    capsys: pytest.CaptureFixture[str]

    def deploy(self, *more: str) -> int:
        return main([
            "deploy", "k3s", str(self.file), "--kubeconfig", str(self.server.kubeconfig),
            "--certificates", str(self.certificates), *more,
        ])  # fmt: skip

    def said(self) -> tuple[str, str]:
        found = self.capsys.readouterr()
        return found.out, found.err

    def change(self, old: str, new: str) -> None:
        text = self.file.read_text()
        assert old in text
        self.file.write_text(text.replace(old, new))


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs")
    assert main(["certs", str(ROOT / "sites" / "demo.yaml"), "--out", str(folder)]) == 0
    return folder


def written(folder: Path) -> Path:
    file = folder / "demo.yaml"
    text = (ROOT / "sites" / "demo.yaml").read_text()
    file.write_text(text.replace("../models", str(ROOT / "models")))
    return file


@pytest.fixture
def site(
    tmp_path: Path, certificates: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    monkeypatch.setattr("skerry.deploy.kubernetes_api._POLL_S", 0.01)
    with KubernetesServer(tmp_path / "cluster") as server:
        yield Site(server, written(tmp_path), certificates, capsys)


@pytest.fixture(scope="session")
def after_deploying(tmp_path_factory: pytest.TempPathFactory, certificates: Path) -> KubernetesServer:
    """What a cluster has then, to begin with."""
    folder = tmp_path_factory.mktemp("once")
    with KubernetesServer(folder / "cluster") as server:
        arguments = ["--kubeconfig", str(server.kubeconfig), "--certificates", str(certificates)]
        assert main(["deploy", "k3s", str(written(folder)), *arguments, "--wait", "0"]) == 0
    return server


@pytest.fixture
def deployed(site: Site, after_deploying: KubernetesServer) -> Site:
    site.server.objects = copy.deepcopy(after_deploying.objects)
    site.server.owners = copy.deepcopy(after_deploying.owners)
    return site


def test_everything_of_a_site_is_applied_and_gets_ready(site: Site) -> None:
    assert site.deploy() == 0
    assert set(site.server.named("Deployment")) == DEPLOYMENTS
    assert set(site.server.named("Secret")) == {
        f"certificates-{name}" for name in ("broker", "uplink", "buffer", "decision", "inference", "capture")
    }
    out, _ = site.said()
    assert all(f"{name:12} ready" in out for name in DEPLOYMENTS)
    assert all(request.query["fieldManager"] == "skerry" for request in site.server.writes())


def test_a_second_run_changes_nothing(deployed: Site) -> None:
    assert deployed.deploy() == 0
    assert deployed.server.writes() == []
    assert "nothing to do" in deployed.said()[0]


def test_diff_of_an_empty_cluster_changes_nothing_and_ends_with_1(site: Site) -> None:
    assert site.deploy("--diff") == 1
    assert site.server.writes() == []
    assert "+ Deployment buffer" in site.said()[0]


def test_diff_of_what_is_there_ends_with_0(deployed: Site) -> None:
    assert deployed.deploy("--diff") == 0
    assert deployed.server.writes() == []


def test_one_changed_line_changes_one_deployment(deployed: Site) -> None:
    deployed.change("above: 3", "above: 4")
    assert deployed.deploy("--diff") == 1
    out, _ = deployed.said()
    assert [line for line in out.splitlines() if line[0] in "+~-="] == ["~ Deployment decision"]
    assert "rules[pick-zone-full].above: 3 -> 4" in out
    assert deployed.deploy() == 0
    assert [request.path.rpartition("/")[2] for request in deployed.server.writes()] == ["decision"]


def test_a_secret_is_never_shown(deployed: Site, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert main(["certs", str(deployed.file), "--out", str(other)]) == 0
    deployed.said()
    certificates = deployed._replace(certificates=other)
    assert certificates.deploy("--diff") == 1
    out, err = certificates.said()
    assert "data.tls.key: (not shown) -> (not shown)" in out
    for file in (*other.rglob("tls.*"), *deployed.certificates.rglob("tls.*")):
        assert base64.b64encode(file.read_bytes()).decode()[:24] not in out + err
        assert file.read_text()[28:60] not in out + err


def test_new_certificates_start_pods_again(deployed: Site, tmp_path: Path) -> None:
    before = deployed.server.named("Deployment")
    other = tmp_path / "other"
    assert main(["certs", str(deployed.file), "--out", str(other)]) == 0
    assert deployed._replace(certificates=other).deploy() == 0
    after = deployed.server.named("Deployment")
    assert all(before[name]["spec"]["template"] != after[name]["spec"]["template"] for name in DEPLOYMENTS)
    key = base64.b64decode(deployed.server.named("Secret")["certificates-buffer"]["data"]["tls.key"])
    assert key == (other / "buffer" / "tls.key").read_bytes()


def test_a_field_that_somebody_else_owns_is_named_with_its_owner(deployed: Site) -> None:
    deployed.server.set_by("kubectl-scale", "Deployment", "uplink", ("spec", "replicas"), 2)
    assert deployed.deploy() == 78
    _, err = deployed.said()
    assert "Deployment uplink: .spec.replicas is owned by kubectl-scale (--force-conflicts takes it)" in err
    assert deployed.server.writes() == []


def test_with_force_a_field_is_taken_over(deployed: Site) -> None:
    deployed.server.set_by("kubectl-scale", "Deployment", "uplink", ("spec", "replicas"), 2)
    assert deployed.deploy("--force-conflicts") == 0
    assert "spec.replicas: 2 -> 1" in deployed.said()[0]
    assert deployed.server.named("Deployment")["uplink"]["spec"]["replicas"] == 1


def test_what_somebody_else_added_stays(deployed: Site) -> None:
    leaf = ("metadata", "annotations", "team")
    deployed.server.set_by("kubectl-annotate", "Deployment", "uplink", leaf, "belt")
    assert deployed.deploy() == 0
    assert deployed.server.named("Deployment")["uplink"]["metadata"]["annotations"] == {"team": "belt"}
    assert deployed.server.writes() == []


def test_what_the_site_no_longer_has_goes_but_not_its_state(deployed: Site) -> None:
    before = set(deployed.server.named("ConfigMap"))
    deployed.change("link: {kind: file, path: events.jsonl}", "link: {kind: mqtt, host: far.example}")
    assert deployed.deploy() == 0
    out, _ = deployed.said()
    assert "= PersistentVolumeClaim output" in out
    assert "output" in deployed.server.named("PersistentVolumeClaim")
    assert "outside-uplink" in deployed.server.named("NetworkPolicy")
    deployed.change("link: {kind: mqtt, host: far.example}", "link: {kind: file, path: events.jsonl}")
    assert deployed.deploy() == 0
    assert "- NetworkPolicy outside-uplink" in deployed.said()[0]
    assert "outside-uplink" not in deployed.server.named("NetworkPolicy")
    assert set(deployed.server.named("ConfigMap")) == before


@pytest.mark.parametrize(
    ("ill", "reason"),
    [
        (
            {"pod": {"containerStatuses": [{
                "name": "buffer", "image": "r.example/skerry-buffer:1", "state": {
                    "waiting": {"reason": "ImagePullBackOff", "message": "no such host"}},
            }]}},
            "cannot pull r.example/skerry-buffer:1 (ImagePullBackOff): no such host",
        ),
        (
            {"pod": {"containerStatuses": [{
                "name": "buffer", "restartCount": 4,
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"exitCode": 78}},
            }]}},
            "buffer ends again and again, exit code 78, 4 restarts: state: expected a folder",
        ),
        (
            {"pod": {"conditions": [{
                "type": "PodScheduled", "status": "False",
                "message": "0/1 nodes are available: 1 Insufficient squat.ai/video0",
            }]}},
            "pending: 0/1 nodes are available: 1 Insufficient squat.ai/video0",
        ),
        (
            {"pod": {"containerStatuses": [{
                "name": "buffer",
                "state": {"waiting": {"reason": "CreateContainerConfigError", "message": "no secret x"}},
            }]}},
            "buffer: CreateContainerConfigError: no secret x",
        ),
        (
            {"events": [{"type": "Warning", "message": "MountVolume.SetUp failed: no such claim"}]},
            "MountVolume.SetUp failed: no such claim",
        ),
        (
            {"conditions": [{
                "type": "ReplicaFailure", "status": "True", "message": "violates PodSecurity restricted",
            }]},
            "violates PodSecurity restricted",
        ),
    ],
    ids=["pull", "crash", "pending", "configuration", "volume", "refused"],
)  # fmt: skip
def test_a_pod_that_does_not_get_ready_says_why(site: Site, ill: dict[str, object], reason: str) -> None:
    site.server.ill["buffer"] = ill
    site.server.logs["buffer-pod"] = "first\nstate: expected a folder\n"
    assert site.deploy("--wait", "2") == 69
    _, err = site.said()
    [line] = [text for text in err.splitlines() if text.startswith("Deployment buffer: expected it ready")]
    assert reason in line


def test_a_crash_loop_is_not_waited_for_to_the_end(site: Site) -> None:
    site.server.ill["buffer"] = {"pod": {"containerStatuses": [{
        "name": "buffer", "restartCount": 4, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
    }]}}  # fmt: skip
    assert site.deploy("--wait", "86400") == 69


def test_remove_ends_pods_in_the_order_of_the_flow_and_keeps_state(deployed: Site) -> None:
    assert deployed.deploy("--remove") == 0
    names = [r.path.rpartition("/")[2] for r in deployed.server.writes() if "/deployments/" in r.path]
    assert names == ["vision", "decision", "buffer", "uplink", "broker"]
    assert set(deployed.server.named("PersistentVolumeClaim")) >= {"buffer-state", "decision-state", "output"}
    left = {o["kind"] for o in deployed.server.objects.values()}
    assert left == {"Namespace", "PersistentVolumeClaim"}


def test_each_pod_has_ended_before_the_next_one_is_told_to(deployed: Site) -> None:
    assert deployed.deploy("--remove") == 0
    asked = [
        (r.method, r.path.rpartition("/")[2])
        for r in deployed.server.requests
        if "/deployments/" in r.path or r.path.endswith("/pods")
    ]
    first, second = [n for n, (method, _) in enumerate(asked) if method == "DELETE"][:2]
    assert ("GET", "pods") in asked[first:second]


def test_remove_with_state_leaves_nothing(deployed: Site) -> None:
    assert deployed.deploy("--remove", "--state") == 0
    assert deployed.server.objects == {}
    assert deployed.deploy("--remove", "--state", "--diff") == 0


def test_another_namespace_has_everything(site: Site) -> None:
    assert site.deploy("--namespace", "line-3") == 0
    assert set(site.server.named("Namespace")) == {"line-3"}
    assert all("/namespaces/line-3" in path for path in site.server.objects)


def test_a_namespace_with_something_else_in_it_is_refused(site: Site) -> None:
    other = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "prod"}}
    site.server.objects["/api/v1/namespaces/prod"] = other
    assert site.deploy("--namespace", "prod") == 78
    assert "got prod of somebody else" in site.said()[1]
    assert site.deploy("--namespace", "prod", "--remove", "--state") == 0
    assert site.server.objects == {"/api/v1/namespaces/prod": other}


def test_without_certificates_their_secrets_must_be_there(site: Site) -> None:
    arguments = ["deploy", "k3s", str(site.file), "--kubeconfig", str(site.server.kubeconfig)]
    assert main(arguments) == 69
    assert "Secret certificates-buffer: expected it in skerry-demo, got none" in site.said()[1]
    assert site.server.writes() == []
    assert site.deploy() == 0
    site.said()
    site.server.writes()
    # What --certificates made is brought by somebody else from now on: it stays.
    assert main([*arguments, "--diff"]) in (0, 1)
    assert "- Secret" not in site.said()[0]


def test_a_cluster_that_refuses_is_named_with_its_reason(site: Site) -> None:
    site.server.refuse["deployments"] = 403
    assert site.deploy() == 69
    assert "403: deployments is forbidden: no rights (the kubeconfig's user may not)" in site.said()[1]


def test_a_cluster_that_is_not_there_is_unavailable(site: Site, tmp_path: Path) -> None:
    there = yaml.safe_load(site.server.kubeconfig.read_text())
    there["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    away = tmp_path / "away"
    away.write_text(yaml.safe_dump(there))
    assert site.deploy("--kubeconfig", str(away)) == 69
    assert "does not answer" in site.said()[1]


@pytest.mark.parametrize("text", [None, "nonsense", "a: [", "{}"])
def test_a_bad_kubeconfig_is_a_configuration_error(site: Site, tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "bad"
    if text is not None:
        file.write_text(text)
    assert site.deploy("--kubeconfig", str(file)) == 78
    assert "--kubeconfig: expected a kubeconfig" in site.said()[1]


def test_a_stranger_is_not_let_in(site: Site, tmp_path: Path) -> None:
    there = yaml.safe_load(site.server.kubeconfig.read_text())
    there["users"][0]["user"] = {"token": "guess"}
    file = tmp_path / "stranger"
    file.write_text(yaml.safe_dump(there))
    assert site.deploy("--kubeconfig", str(file)) == 69


def test_missing_certificates_are_all_named(site: Site, tmp_path: Path) -> None:
    assert site._replace(certificates=tmp_path / "none").deploy() == 78
    _, err = site.said()
    assert "buffer/tls.key: expected a file" in err
    assert "broker/tls.crt: expected a file" in err
