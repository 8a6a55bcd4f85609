"""/healthz, /readyz and /metrics of one module."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from skerry.errors import ConfigError

if TYPE_CHECKING:
    from skerry.service import Host

log = structlog.get_logger()


class TelemetryCollector(Collector):
    """Shows a module's telemetry to Prometheus; the module's name is a label, never part of a name."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def collect(self) -> Iterator[Metric]:
        self._host.refresh()
        module = self._host.settings.module
        families: dict[str, Metric] = {}
        for name, labels, value in self._host.telemetry.rows():
            kind = "counter" if name.endswith("_total") else "gauge"
            family = families.setdefault(name, _scalar(kind, name))
            family.add_sample(name, {"module": module, **labels}, value)
        for name, labels, latency in self._host.telemetry.histograms():
            seconds = f"skerry_{name}_seconds"
            histogram = families.setdefault(seconds, HistogramMetricFamily(seconds, f"Time of {name}."))
            tags = {"module": module, **labels}
            for bound, count in latency.cumulative():
                histogram.add_sample(f"{seconds}_bucket", {**tags, "le": bound}, count)
            histogram.add_sample(f"{seconds}_count", tags, latency.count)
            histogram.add_sample(f"{seconds}_sum", tags, latency.sum_ms / 1000)
        yield from families.values()


def _scalar(kind: str, name: str) -> Metric:
    if kind == "counter":
        return CounterMetricFamily(name.removesuffix("_total"), f"Count of {name}.")
    return GaugeMetricFamily(name, f"Value of {name}.")


def serve(host: Host, address: str, port: int) -> int:
    """Serve on a daemon thread; returns the port.

    Raises:
        ConfigError: the port is taken.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(TelemetryCollector(host))

    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # seconds for one request: who sends nothing does not hold a thread for ever

        def do_GET(self) -> None:
            status, kind, body = _answer(host, registry, self.path)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            log.debug("http.request", line=format % args)

    try:
        server = ThreadingHTTPServer((address, port), Handler)
    except OSError as error:
        raise ConfigError(
            f"http_port: cannot listen on {address}:{port}: {error.strerror} (choose another)"
        ) from error
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()
    log.info("http.listening", host=address, port=server.server_port)
    return server.server_port


def _answer(host: Host, registry: CollectorRegistry, path: str) -> tuple[int, str, bytes]:
    text = "text/plain; charset=utf-8"
    match path.partition("?")[0]:
        case "/healthz":
            return (200, text, b"alive\n") if host.alive else (503, text, b"main loop stalled\n")
        case "/readyz":
            state, reason = host.condition
            fit = state in ("ready", "degraded") and host.bus.connected
            detail = f"{state} {reason}" if host.bus.connected else "no broker"
            return 200 if fit else 503, text, f"{detail.strip()}\n".encode()
        case "/metrics":
            return 200, CONTENT_TYPE_LATEST, generate_latest(registry)
        case _:
            return 404, text, b"not found (try /healthz, /readyz or /metrics)\n"
