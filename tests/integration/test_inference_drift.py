"""The inference module tells of drift: one camera's light changes and is put right, another's does not."""

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from inference_site import Camera, Site
from skerry.channels import INVENTORY
from skerry.inference.drift import Sample, baseline
from skerry.messages import Inventory
from skerry.testing import eventually
from tiny_models import LABELS, bright_model, write_package

WINDOW = 20


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A model whose baseline is a picture of brightness 0.4 to 0.6 with one object in it."""
    random = np.random.default_rng(1)
    samples = [
        Sample({"brightness": [float(random.uniform(0.4, 0.6) * 255)], "objects": [1.0]})
        for _ in range(30 * WINDOW)
    ]
    its = baseline(samples, len(LABELS), every_s=1, window=WINDOW, in_a_row=2)
    write_package(tmp_path / "package", bright_model())
    path = tmp_path / "package" / "manifest.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    raw["decoder"]["score_threshold"] = 0.1
    path.write_text(json.dumps({**raw, "baseline": msgspec.to_builtins(its)}), encoding="utf-8")
    return Site(tmp_path)


def shoot(site: Site, camera: Camera, windows: int, low: float, high: float) -> None:
    """Frames a second apart, and others in between that are not looked at."""
    random = np.random.default_rng(camera.number + 2)
    for _ in range(windows * WINDOW):
        for media_ns in (camera.number * 500_000_000, (camera.number + 1) * 500_000_000):
            before = len(site.results)
            camera.shoot(float(random.uniform(low, high)), media_ns=media_ns)
            eventually(lambda before=before: len(site.results) > before)


def gauges(host: Any, name: str) -> dict[str, float]:
    return {key: value for key, value in host.telemetry.values().items() if key.startswith(name + "{")}


def test_a_dimmed_light_is_reported_until_it_is_put_right(site: Site) -> None:
    told: list[Inventory] = []
    site.bus.subscribe(INVENTORY, told.append)
    gate, ramp = site.camera("gate"), site.camera("ramp")
    with site.running() as host:
        shoot(site, gate, 2, 0.4, 0.6)
        shoot(site, ramp, 2, 0.4, 0.6)
        assert set(gauges(host, "skerry_drift").values()) == {0.0}
        shoot(site, gate, 1, 0.15, 0.25)
        assert told[-1].models[0].drift == (), "one window can be chance"
        shoot(site, gate, 1, 0.15, 0.25)
        eventually(lambda: told[-1].models[0].drift == ("gate: brightness",))
        drifting = [key for key, value in gauges(host, "skerry_drift").items() if value]
        assert drifting == ["skerry_drift{camera=gate,signal=brightness}"]
        assert host.condition[0] == "ready", "a module that reports drift is well"
        shoot(site, gate, 1, 0.4, 0.6)
        eventually(lambda: told[-1].models[0].drift == ())


def test_a_package_without_a_baseline_is_not_watched(tmp_path: Path) -> None:
    write_package(tmp_path / "package", bright_model())
    site = Site(tmp_path)
    with site.running() as host:
        shoot(site, site.camera(), 1, 0.4, 0.6)
        assert gauges(host, "skerry_drift") == {}
