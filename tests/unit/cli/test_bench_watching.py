"""What `skerry bench models` measures of watching a model, in short: that it measures, not how much."""

import pytest

from needs import ROOT
from skerry.cli import bench_watching
from tiny_models import write_package


@pytest.fixture(autouse=True)
def in_short(monkeypatch):
    monkeypatch.setattr(bench_watching, "_MEDIA_S", 60)
    monkeypatch.setattr(bench_watching, "_SHADOWED", 2)
    monkeypatch.setattr(bench_watching, "_SIZES", ((64, 48),))


def test_each_part_of_watching_has_its_cost():
    found = bench_watching.run(ROOT / "models" / "parts", runs=1)
    assert found.pop("wanted_of_drift_a_frame_ms") == 0.2
    costs = found["64x48"]
    assert set(costs) == {
        "drift_a_frame_ms", "drift_a_sampled_frame_ms", "drift_the_last_frame_of_a_window_ms",
        "shadow_on_the_loop_ms", "shadow_beside_it_ms", "samples_a_frame_ms", "a_sample_beside_the_loop_ms",
    }  # fmt: skip
    assert 0 < costs["drift_a_frame_ms"] < costs["drift_a_sampled_frame_ms"], "one frame of 15 is sampled"


def test_a_package_without_a_baseline_is_given_one(tmp_path):
    found = bench_watching.run(write_package(tmp_path / "package"), runs=1)
    assert found["64x48"]["drift_a_frame_ms"] > 0
