"""What to do on a cluster, given what the server says. No server is asked."""

import base64

import pytest

from skerry.deploy.archive import Entry
from skerry.deploy.cluster import (
    KINDS,
    Made,
    conflicts,
    crashed,
    difference,
    flow_place,
    gone,
    kind_of,
    namespace_of,
    prepared,
    readiness,
)
from skerry.errors import ConfigError


def thing(kind, name, component="", **more):
    labels = {"app.kubernetes.io/component": component} if component else {}
    return {
        "apiVersion": KINDS[kind].version, "kind": kind,
        "metadata": {"name": name, "namespace": "skerry-demo", "labels": labels}, **more,
    }  # fmt: skip


NAMESPACE = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "skerry-demo"}}


def workload(name="buffer", secret="", **pod):
    volumes = [{"name": "c", "secret": {"secretName": secret}}] if secret else []
    spec = {"replicas": 1, "template": {"metadata": {}, "spec": {"volumes": volumes, **pod}}}
    return thing("Deployment", name, name, spec=spec)


def secret(content=b"key", name="certificates-buffer"):
    return Made(name=name, files=(Entry(name="tls.key", content=content, private=True),), certificates=True)


def test_paths_are_those_of_the_api():
    assert KINDS["Namespace"].path("x", "skerry-demo") == "/api/v1/namespaces/skerry-demo"
    assert KINDS["Secret"].path("a", "b") == "/api/v1/namespaces/a/secrets/b"
    assert KINDS["Deployment"].path("a") == "/apis/apps/v1/namespaces/a/deployments"


def test_a_kind_that_no_site_has_is_refused():
    with pytest.raises(ConfigError, match="v1 Pod: expected one of Namespace"):
        kind_of({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}})


def test_secrets_come_after_their_namespace_and_before_who_mounts_them():
    found = prepared([NAMESPACE, workload(secret="certificates-buffer")], "demo", secrets=[secret()])
    assert [each["kind"] for each in found] == ["Namespace", "Secret", "Deployment"]
    assert found[1]["type"] == "kubernetes.io/tls"
    assert base64.b64decode(found[1]["data"]["tls.key"]) == b"key"


def test_a_pod_is_marked_with_the_secrets_that_it_has():
    def mark(content):
        made = prepared(
            [NAMESPACE, workload(secret="certificates-buffer")], "demo", secrets=[secret(content)]
        )
        return made[-1]["spec"]["template"]["metadata"]["annotations"]["skerry/secrets"]

    assert mark(b"one") == mark(b"one") != mark(b"two")
    assert mark(b"one").startswith("certificates-buffer=")


def test_a_pod_without_our_secrets_is_as_it_was_rendered():
    its = workload(secret="of-somebody-else")
    assert prepared([NAMESPACE, its], "demo", secrets=[secret()])[-1] == its


def test_everything_can_be_in_another_namespace():
    found = prepared([NAMESPACE, workload()], "demo", "line-3", [secret()])
    assert namespace_of(found) == "line-3"
    assert {each["metadata"]["namespace"] for each in found[1:]} == {"line-3"}
    assert NAMESPACE["metadata"]["name"] == "skerry-demo"


def test_what_the_server_writes_itself_is_no_difference():
    live = workload()
    after = workload()
    live["metadata"] |= {"resourceVersion": "1", "uid": "x", "managedFields": [{}], "generation": 1}
    live["metadata"]["annotations"] = {"deployment.kubernetes.io/revision": "3"}
    live["status"] = {"replicas": 1}
    assert difference(live, after) is None


def test_a_setting_is_shown_by_its_own_path():
    def its(above):
        value = f'{{"rules":[{{"name":"full","above":{above}}}]}}'
        env = [{"name": "SKERRY_SETTINGS", "value": value}]
        return workload(containers=[{"name": "decision", "env": env}])

    found = difference(its(3), its(4))
    assert found.mark == "~"
    assert found.why == (
        "spec.template.spec.containers[decision].env[SKERRY_SETTINGS].rules[full].above: 3 -> 4",
    )


def test_a_difference_that_has_no_path_of_its_own_is_one():
    def its(*paths):
        mounts = [{"name": "state", "mountPath": path} for path in paths]
        return workload(containers=[{"name": "buffer", "volumeMounts": mounts}])

    assert difference(its("/a", "/b"), its("/c", "/b")).why == ("the order of a list",)
    assert difference(its("/a", "/b"), its("/a", "/b")) is None


def test_a_secret_shows_its_keys_only():
    before = thing("Secret", "s", data={"a": "T0xE", "b": "T0xE"})
    after = thing("Secret", "s", data={"a": "TkVX", "c": "TkVX"})
    assert difference(before, after).why == (
        "data.a: (not shown) -> (not shown)",
        "data.b: (not shown) -> nothing",
        "data.c: nothing -> (not shown)",
    )


def test_what_is_gone_goes_in_the_order_of_the_flow_deployments_first():
    there = [
        thing("ConfigMap", "old"),
        *(thing("Deployment", n, n) for n in ("broker", "buffer", "vision", "decision", "uplink")),
    ]
    found = gone([workload("buffer")], there)
    assert [each["metadata"]["name"] for each in found] == ["vision", "decision", "uplink", "broker", "old"]
    assert found == sorted(found, key=flow_place)


def test_conflicts_name_the_field_and_its_owner():
    status = {
        "message": "Apply failed",
        "details": {"causes": [
            {"reason": "FieldManagerConflict", "field": ".spec.replicas",
             "message": 'conflict with "kubectl-scale" with subresource "scale" using apps/v1'},
        ]},
    }  # fmt: skip
    assert conflicts(status) == [".spec.replicas is owned by kubectl-scale"]
    assert conflicts({"message": "try again"}) == ["try again"]


def status(**more):
    its = workload()
    its["metadata"]["generation"] = 2
    return {**its, "status": {"observedGeneration": 2, "replicas": 1, "updatedReplicas": 1, **more}}


def test_ready_is_what_the_controller_has_seen_updated_and_available():
    assert readiness(status(availableReplicas=1)).ready
    assert not readiness(status()).ready
    assert not readiness(status(availableReplicas=1, observedGeneration=1)).ready
    assert not readiness(status(availableReplicas=1, updatedReplicas=0)).ready
    assert not readiness(status(availableReplicas=1, replicas=2)).ready


def test_a_deadline_that_has_passed_is_told():
    condition = {
        "type": "Progressing",
        "status": "False",
        "reason": "ProgressDeadlineExceeded",
        "message": "late",
    }
    found = readiness(status(conditions=[condition]))
    assert (found.reason, found.hopeless) == ("late", True)


def test_a_condition_of_the_generation_before_says_nothing():
    condition = {"type": "ReplicaFailure", "status": "True", "message": "of yesterday"}
    found = readiness(status(observedGeneration=1, conditions=[condition]))
    assert (found.reason, found.hopeless) == ("", False)


def pod(**its):
    return {"metadata": {"name": "buffer-1"}, "status": {"containerStatuses": [{"name": "buffer", **its}]}}


def test_a_container_that_is_being_made_is_no_reason():
    assert readiness(status(), [pod(state={"waiting": {"reason": "ContainerCreating"}})]).reason == ""


def test_a_first_crash_is_told_and_not_the_end():
    state = {"waiting": {"reason": "CrashLoopBackOff"}}
    its = pod(state=state, restartCount=1, lastState={"terminated": {"exitCode": 69}})
    found = readiness(status(), [its])
    assert (found.reason, found.hopeless) == ("buffer ends again and again, exit code 69, 1 restarts", False)
    assert crashed([its]) == ("buffer-1", "buffer")


def test_one_that_runs_again_has_not_crashed():
    assert crashed([pod(state={"running": {}}, lastState={"terminated": {"exitCode": 1}})]) is None


def test_an_event_is_told_where_the_pod_itself_says_nothing():
    events = [
        {"type": "Normal", "message": "Scheduled", "involvedObject": {"name": "buffer-1"}},
        {"type": "Warning", "message": "FailedMount: no such secret", "involvedObject": {"name": "buffer-1"}},
        {"type": "Warning", "message": "of another", "involvedObject": {"name": "other"}},
    ]
    assert readiness(status(), [pod(state={})], events).reason == "FailedMount: no such secret"
