"""Set up OpenTelemetry's SDK from its own variables: `OTEL_*` alone decide what goes where.

`Trace` and `Metrics` speak to OpenTelemetry's API, which does nothing until a process has an SDK.
A service that starts sets one up, once for the process, if `busmicro[otel]` is installed and the
environment names an exporter: `OTEL_EXPORTER_OTLP_ENDPOINT`, the same for one signal
(`OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, …), `OTEL_TRACES_EXPORTER` or `OTEL_METRICS_EXPORTER`.  Where
the program has its own SDK, that stays.  Exporting happens in threads of the SDK: a collector that
is dead costs calls nothing, is named once in the log, and holds up the end of the process by at
most three seconds.

Source: OpenTelemetry specification, configuration/sdk-environment-variables.md.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from busmicro.wrappers import conventions as names

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace.export import SpanExporter

log = logging.getLogger("busmicro.telemetry")

_LAST_WORDS: Final = 3.0
"""Seconds that what has not been exported gets when the process ends."""
_DISABLED: Final = "OTEL_SDK_DISABLED"
_OTLP: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
_PROTOCOL: Final = "OTEL_EXPORTER_OTLP_PROTOCOL"
_MISSING: Final = "%s is set, but telemetry cannot be sent (%s): pip install 'busmicro[otel]'"


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """Who speaks: what telemetry says of this process unless `OTEL_*` says otherwise."""

    service: str
    """The name of the service, or of the program."""
    version: str = ""
    """Its version."""
    node: str = ""
    """The id of the node."""
    namespace: str = ""
    """The namespace on the bus."""

    @property
    def attributes(self) -> Mapping[str, str]:
        """It, as attributes of a resource."""
        found = {
            names.SERVICE_NAME: self.service,
            names.SERVICE_VERSION: self.version,
            names.SERVICE_INSTANCE: self.node,
            names.SERVICE_NAMESPACE: self.namespace,
        }
        return {name: value for name, value in found.items() if value}


def set_up(about: About, *, scraped: bool = False) -> None:
    """Set up traces and metrics as the environment says, once for the process; never raises.

    A service does this when it starts. Programs that have only a `Client` call it themselves.

    Args:
        about: Who speaks.
        scraped: Will metrics be read from `prometheus_client`'s registry?
    """
    if os.environ.get(_DISABLED, "").strip().lower() == "true":
        return
    traces, metrics = _chosen("TRACES"), _chosen("METRICS")
    if not (traces or metrics or scraped):
        return
    try:
        _set_up(about, traces, metrics, scraped=scraped)
    except ImportError as missing:
        if traces or metrics:
            log.warning(_MISSING, _variable(), missing)
    except Exception:
        log.exception("telemetry could not be set up; the service runs without")


def _chosen(signal: str) -> list[str]:
    """Return the names of the exporters for a signal; none unless the environment says so."""
    said = os.environ.get(f"OTEL_{signal}_EXPORTER", "").strip()
    if not said:
        endpoint = os.environ.get(_OTLP) or os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT")
        return ["otlp"] if endpoint else []
    return [name for name in (part.strip() for part in said.split(",")) if name not in {"", "none"}]


def _variable() -> str:
    """Return a variable that asks for an exporter."""
    begins = ("OTEL_EXPORTER_OTLP", "OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER")
    return next((name for name in os.environ if name.startswith(begins)), _OTLP)


def _set_up(about: About, traces: list[str], metrics: list[str], *, scraped: bool) -> None:
    from opentelemetry import metrics as metrics_api  # noqa: PLC0415 - start-up time
    from opentelemetry import trace as traces_api  # noqa: PLC0415

    resource = _resource(about)
    ours = isinstance(traces_api.get_tracer_provider(), traces_api.ProxyTracerProvider)
    if traces and ours:
        _set_up_traces(resource, traces)
    # There is no public name for the provider that stands for none.
    ours = type(metrics_api.get_meter_provider()).__name__ == "_ProxyMeterProvider"
    if (metrics or scraped) and ours:
        _set_up_metrics(resource, metrics, scraped=scraped)


def _resource(about: About) -> Resource:
    """Return who speaks; what `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` say wins."""
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource  # noqa: PLC0415

    return Resource.create({**about.attributes, **OTELResourceDetector().detect().attributes})


def _set_up_traces(resource: Resource, chosen: list[str]) -> None:
    from opentelemetry import trace  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    exporters = [_Watched("traces", exporter) for exporter in _made("traces", chosen)]
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    for exporter in exporters:
        provider.add_span_processor(BatchSpanProcessor(_as_span_exporter(exporter)))
    trace.set_tracer_provider(provider)
    _at_exit(provider.shutdown)


def _set_up_metrics(resource: Resource, chosen: list[str], *, scraped: bool) -> None:
    from opentelemetry import metrics  # noqa: PLC0415
    from opentelemetry.sdk.metrics import MeterProvider  # noqa: PLC0415

    readers = [_reader(made) for made in _made("metrics", chosen)]
    if scraped:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader  # noqa: PLC0415

        readers.append(PrometheusMetricReader(scope_info_enabled=False))
    provider = MeterProvider(readers, resource=resource, shutdown_on_exit=False)
    metrics.set_meter_provider(provider)
    _at_exit(provider.shutdown)


def _made(signal: str, chosen: list[str]) -> list[Any]:
    """Make the exporters of these names; what is not installed is named and left out."""
    from importlib.metadata import entry_points  # noqa: PLC0415 - start-up time

    found = []
    for name in chosen:
        entry = _entry(signal, name)
        points = tuple(entry_points(group=f"opentelemetry_{signal}_exporter", name=entry))
        if points:
            found.append(points[0].load()())
        else:
            log.warning("no exporter %r for %s is installed; it is left out", entry, signal)
    return found


def _entry(signal: str, name: str) -> str:
    if name != "otlp":
        return name
    said = os.environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL")
    protocol = said or os.environ.get(_PROTOCOL, "")
    return "otlp_proto_grpc" if protocol.strip() == "grpc" else "otlp_proto_http"


def _at_exit(shut_down: Callable[[], object]) -> None:
    """Export what is left when the process ends, but do not hold it up for long."""
    if not _to_shut_down:
        atexit.register(_end)
    _to_shut_down.append(shut_down)


def _end() -> None:
    threads = [threading.Thread(target=end, daemon=True) for end in _to_shut_down]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_LAST_WORDS / len(threads))


_to_shut_down: Final[list[Callable[[], object]]] = []


# --- a collector that is dead -------------------------------------------------------------------


class _Watched:
    """An exporter whose failures are said once, and its recovery once, instead of every 5 s.

    Args:
        signal: What it exports, for the log.
        exporter: What exports.
    """

    def __init__(self, signal: str, exporter: Any) -> None:
        self._signal = signal
        self._exporter = exporter
        self._failing = False
        self._log = logging.getLogger(type(exporter).__module__)
        self._log.addFilter(self._hear)

    def export(self, *batch: Any, **options: Any) -> Any:
        """Export, and say so if that begins or ceases to fail."""
        result = self._exporter.export(*batch, **options)
        if result.name != "SUCCESS":
            self._failed("it does not say why")
        elif self._failing:
            self._failing = False
            log.info("%s are delivered to the collector again", self._signal)
        return result

    def _hear(self, record: logging.LogRecord) -> bool:
        """Take what the exporter logs as the reason; pass it on if somebody asked for all of it."""
        if record.levelno >= logging.WARNING:
            self._failed(record.getMessage())
        return self._log.level != logging.NOTSET

    def _failed(self, why: str) -> None:
        if not self._failing:
            self._failing = True
            log.warning(
                "%s cannot be delivered to the collector and are dropped until they can be: %s; "
                "calls and events go on",
                self._signal,
                why,
            )

    def __getattr__(self, name: str) -> Any:
        """Have everything else done by the exporter."""
        return getattr(self._exporter, name)


def _as_span_exporter(exporter: _Watched) -> SpanExporter:
    return exporter  # type: ignore[return-value]  # it does what an exporter does


def _reader(made: Any) -> MetricReader:
    """Return what reads metrics: an exporter gets a reader that asks every minute."""
    from opentelemetry.sdk.metrics import export  # noqa: PLC0415

    if isinstance(made, export.MetricReader):
        return made
    return export.PeriodicExportingMetricReader(_Watched("metrics", made))  # type: ignore[arg-type]
