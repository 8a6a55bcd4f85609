"""The k3s rendering as real containers, on a secured bus, with the events of a plain run.

There is no cluster here; `kube_played` says what podman stands in for, and what it does not do.
"""

import json
from collections.abc import Iterator

import pytest

import conformance
import needs
from kube_played import Played, played
from skerry.testing import eventually

pytestmark = [needs.podman, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    with played(conformance.SITE, tmp_path_factory.mktemp("site")) as running:
        yield running


def test_pods_give_the_events_of_a_plain_run(site):
    eventually(lambda: conformance.arrived(site.delivered()), 240)
    conformance.same(site.delivered())


def test_every_probe_is_answered_as_the_kubelet_wants_it(site):
    ask = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=5).status)"
    for pod, name in site.containers():
        [its] = [c for c in site.pods[pod]["containers"] if c["name"] == name]
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = its[kind]
            if "exec" in probe:
                site.run(pod, name, *probe["exec"]["command"])
                continue
            url = f"http://127.0.0.1:{probe['httpGet']['port']}{probe['httpGet']['path']}"
            assert site.run(pod, name, "python3", "-c", ask, url) == "200\n", f"{name}: {kind}"


def test_containers_are_as_confined_as_their_pod_says(site):
    code = (
        "print(open('/proc/1/status').read())\n"
        "try: open('/opt/skerry/x', 'w')\n"
        "except OSError as error: print(error)"
    )
    for pod, name in site.containers():
        said = site.run(pod, name, "python3", "-c", code)
        assert "CapEff:\t0000000000000000" in said, name
        assert "CapBnd:\t0000000000000000" in said, name
        assert "NoNewPrivs:\t1" in said, name
        assert "Uid:\t10001\t10001" in said, name
        assert "Read-only file system" in said, name


def test_memory_is_bounded_as_the_pod_says(site):
    for pod, name in site.containers():
        [its] = [c for c in site.pods[pod]["containers"] if c["name"] == name]
        bound = int(site.podman("inspect", "-f", "{{.HostConfig.Memory}}", site.container(pod, name)))
        assert f"{bound >> 20}Mi" == its["resources"]["limits"]["memory"]


def test_every_line_that_a_module_logs_is_json(site):
    for pod, name in site.containers():
        if name != "broker":
            lines = site.podman("logs", site.container(pod, name), both=True).splitlines()
            assert lines, name
            assert all("event" in json.loads(line) for line in lines), name


def test_all_stop_by_themselves_in_the_time_that_their_pod_gives(site):
    """Last in this file: it stops the site."""
    assert site.stop() == dict.fromkeys([name for _, name in site.containers()], 0)
