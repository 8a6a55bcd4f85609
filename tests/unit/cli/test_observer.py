"""What screens know of a running site."""

import msgspec

from events import event
from skerry.bus import MemoryBroker, MemoryBus
from skerry.channels import DELIVERED, METRICS
from skerry.cli.observer import CONFIRMED, Observer
from skerry.messages import Delivered, Metrics


def test_the_newest_delivered_events_are_kept_and_decoded_when_they_are_looked_at() -> None:
    bus = MemoryBus(MemoryBroker())
    observer = Observer(bus, began=0.0, recent=3)
    raws = tuple(msgspec.Raw(msgspec.json.encode(event(n))) for n in range(1, 6))
    bus.publish(DELIVERED, Delivered(module="uplink", events=raws), "uplink")
    bus.publish(DELIVERED, Delivered(module="uplink", events=(msgspec.Raw(b'{"odd":1}'),)), "uplink")
    assert [e.seq for e in observer.last_events(10)] == [4, 5]


def test_what_was_delivered_counts_on_over_a_restart_of_the_uplink() -> None:
    bus = MemoryBus(MemoryBroker())
    observer = Observer(bus, began=0.0)
    for module, count in (("uplink", 5), ("uplink", 9), ("uplink", 2), ("uplink", 4), ("other", 100)):
        counters = {CONFIRMED: float(count)}
        metrics = Metrics(module=module, kind="uplink", uptime_s=1, rss_mb=1, cpu_s=1, counters=counters)
        bus.publish(METRICS, metrics, module)
    assert observer.delivered == 9 + 4 + 100
