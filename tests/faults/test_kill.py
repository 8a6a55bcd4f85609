"""Kill -9 of anything at any moment: the suite recovers, nothing accepted is lost, the ledger balances."""

import json
import random
import signal
import time
from pathlib import Path

import pytest

import needs
from site_run import MODULES, assert_exactly_once, leftovers, site_run

KILLS = 10
BETWEEN_S = (1.5, 3.5)


def busy_site(folder: Path, **changes: object) -> Path:
    """The belt with many counting lines, so that events are always on their way."""
    lines = [0.1 + 0.8 * n / 11 for n in range(12)]
    site = {
        "site": "faults",
        "cameras": [{"name": "belt", "source": {"kind": "synthetic", "fps": 15, "stopping": False}}],
        "models": [{"package": str(needs.ROOT / "models" / "parts"), "runtime": "onnxruntime"}],
        "rules": [
            {"name": f"line-{n}", "kind": "line", "camera": "belt", "line": [[x, 0], [x, 1]]}
            for n, x in enumerate(lines)
        ],
        **changes,
    }
    path = folder / "site.yaml"
    path.write_text(json.dumps(site), encoding="utf-8")
    return path


def assert_accounted_for(code: int, result: dict, run_events: list) -> None:
    assert_exactly_once(run_events)
    events = result["events"]
    assert result["ledger_balanced"], result
    assert code == 0
    assert events["decided"] == events["accepted"] == events["delivered"] == len(run_events), events
    assert events["waiting"] == 0


@needs.mosquitto
@pytest.mark.slow
@pytest.mark.timeout(150)
@pytest.mark.parametrize("seed", [1])
def test_ten_kills_of_anything_lose_no_accepted_event_and_the_ledger_balances(
    tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    order = [*MODULES, "broker"] * 2
    rng.shuffle(order)
    with site_run(tmp_path / "out", "run", str(busy_site(tmp_path))) as run:
        run.wait_for_events(5)
        for name in order[:KILLS]:
            run.kill(name)
            time.sleep(rng.uniform(*BETWEEN_S))  # the moment of the next kill is what is random here
        run.wait_for_events(len(run.delivered()) + 10)
        code, result = run.finish(number=signal.SIGTERM)
        assert_accounted_for(code, result, run.delivered())
        assert sum(result["restarts"].values()) == KILLS, result["restarts"]
    assert leftovers(run.out) == []


@needs.mosquitto
@pytest.mark.timeout(90)
def test_everything_killed_at_once_goes_on_from_its_folder(tmp_path: Path) -> None:
    site = busy_site(tmp_path)
    with site_run(tmp_path / "out", "run", str(site)) as run:
        run.wait_for_events(10)
        before = len(run.delivered())
        children = [run.child(name) for name in MODULES]
        run.process.kill()  # the supervisor first: nobody drains
        for child in children:
            child.kill()
        run.process.wait()
    with site_run(tmp_path / "out", "run", str(site)) as run:
        run.wait_for_events(before + 10)
        code, result = run.finish(number=signal.SIGTERM)
        assert_exactly_once(run.delivered())
        assert result["ledger_balanced"], result
        assert code == 0


@needs.mosquitto
@pytest.mark.timeout(90)
def test_children_end_when_their_supervisor_is_killed(tmp_path: Path) -> None:
    with site_run(tmp_path / "out", "run", str(busy_site(tmp_path))) as run:
        run.wait_for_events(1)
        run.process.kill()
        run.process.wait()
        deadline = time.monotonic() + 10
        while leftovers(run.out) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert leftovers(run.out) == []


@pytest.mark.timeout(120)
def test_the_embedded_broker_serves_as_well(tmp_path: Path) -> None:
    site = busy_site(tmp_path, bus={"broker": "amqtt"})
    with site_run(tmp_path / "out", "run", str(site)) as run:
        run.wait_for_events(5)
        run.kill("broker")
        run.wait_for_events(len(run.delivered()) + 10, within_s=60)
        code, result = run.finish(number=signal.SIGINT)
        assert_accounted_for(code, result, run.delivered())
