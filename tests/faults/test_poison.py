"""Events that the far end will never take, under kill -9: put aside, told, and sent again on request."""

import json
from pathlib import Path

import pytest

import needs
from far_network import FarNetwork
from suite import Suite

pytestmark = [needs.mosquitto, needs.network, pytest.mark.timeout(120)]
SMALL = 2048


def test_what_the_far_end_refuses_is_put_aside_told_and_sent_again_on_request(tmp_path: Path) -> None:
    with FarNetwork(tmp_path / "far") as far:
        link = far.link(max_payload_bytes=SMALL)
        load = {"rate": 150, "pad": 200, "big_every": 31}
        with Suite(tmp_path, load=load, uplink={"link": link}, far=far.arrived, repeats=True) as suite:
            for victim in ("uplink", "buffer", "broker", "uplink", "buffer"):
                before = suite.delivered()
                suite.wait_for(lambda n=before: suite.delivered() > n + 100)
                suite.kill(victim)
            account = suite.settle(40)
            print(account)
            aside = {event.id: (event, reason) for event, reason in suite.quarantined()}
            assert account.accepted == account.sent
            assert account.quarantined == account.stated["quarantined"] == account.named["quarantined"] > 10
            assert account.delivered + account.quarantined == account.sent
            assert all(str(SMALL) in reason for _, reason in aside.values())
            assert {event.lane for event, _ in aside.values()} == {"alarm", "event", "telemetry", "bulk"}

            suite.modules["uplink"].settings["link"] = far.link()  # the far end takes larger ones now
            suite.kill("uplink")
            some = sorted(aside)[:3]
            _ask(suite.store, some)
            suite.wait_for(lambda: suite.delivered() and set(suite.arrived.retried) == set(some))
            suite.kill("buffer")
            _ask(suite.store, [])
            suite.wait_for(lambda: suite.delivered() and len(suite.arrived.retried) == len(aside))
            assert suite.settle(40).quarantined >= len(aside)


def _ask(store: Path, ids: list[str]) -> None:
    """As `skerry buffer retry` does."""
    draft = store / "asked.new"
    draft.write_text(json.dumps({"ids": ids}))
    draft.rename(store / f"retry-{len(ids)}.json")
