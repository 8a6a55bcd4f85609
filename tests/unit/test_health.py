"""The pages themselves; that a process serves them is in tests/integration/test_service.py."""

import pytest
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import CollectorRegistry

from skerry.bus import MemoryBus
from skerry.errors import ConfigError
from skerry.health import TelemetryCollector, serve
from skerry.service import Host
from skerry.settings import ModuleSettings


@pytest.fixture
def host(tmp_path):
    host = Host(ModuleSettings(site="s", module="odd", state=str(tmp_path)), "kind", MemoryBus())
    yield host
    host.tally.close()


def families(host):
    registry = CollectorRegistry(auto_describe=False)
    registry.register(TelemetryCollector(host))
    return {f.name: f for f in text_string_to_metric_families(generate_latest(registry).decode())}


def test_series_of_one_name_are_one_family_with_the_module_as_a_label(host):
    host.telemetry.count("frames_total", 2, camera="gate")
    host.telemetry.count("frames_total", 3, camera="hall")
    host.telemetry.gauge("depth", 7)
    found = families(host)
    assert {(s.labels["camera"], s.value) for s in found["frames"].samples} == {("gate", 2), ("hall", 3)}
    assert (found["frames"].type, found["depth"].type) == ("counter", "gauge")
    assert {s.labels["module"] for f in found.values() for s in f.samples} == {"odd"}


def test_histogram_counts_up_to_its_total(host):
    for ms in (1.5, 1.5, 30.0, 120_000.0):
        host.telemetry.latency("decide", camera="gate").add(ms)
    samples = families(host)["skerry_decide_seconds"].samples
    buckets = [s.value for s in samples if s.name.endswith("_bucket")]
    assert buckets == sorted(buckets)
    assert buckets[-1] == 4
    assert next(s.value for s in samples if s.name.endswith("_sum")) == pytest.approx(120.033)


@pytest.mark.parametrize("label", ['quote " in it', "new\nline", "back\\slash", "ü 雪", ""])
def test_any_label_survives_the_page(host, label):
    host.telemetry.count("odd_total", reason=label)
    (sample,) = families(host)["odd"].samples
    assert sample.labels["reason"] == label


def test_gauges_are_brought_up_to_date_for_each_scrape(host):
    scrapes = []
    host.before_metrics(lambda: scrapes.append(1) or host.telemetry.gauge("scrapes", len(scrapes)))
    assert [families(host)["scrapes"].samples[0].value for _ in range(2)] == [1, 2]


def test_address_that_is_not_ours_is_a_config_error(host):
    with pytest.raises(ConfigError, match=r"http_port: cannot listen on 203\.0\.113\.1:0"):
        serve(host, "203.0.113.1", 0)
