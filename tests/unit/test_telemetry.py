"""The standard variables decide whether and where telemetry goes; nothing of it stops a service."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

START = "import logging, sys\nfrom busmicro.telemetry import About, set_up\nlogging.basicConfig()\n"
SET_UP = "set_up(About(service='shop'))\n"
PRINT = "print(sorted(n for n in sys.modules if n.startswith('opentelemetry')) != [])\n"
PROVIDER = (
    "from opentelemetry import trace, metrics\n"
    "print(type(trace.get_tracer_provider()).__name__, "
    "type(metrics.get_meter_provider()).__name__)\n"
)


def run(program: str, **env: str) -> tuple[str, str]:
    """Run a program of its own: what is set up is set up for a whole process."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-c", START + program],
        env={**clean, **env},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return done.stdout.strip(), done.stderr


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"OTEL_SERVICE_NAME": "shop"},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
    ],
    ids=lambda env: ",".join(env) or "nothing",
)
def test_without_an_exporter_nothing_is_installed(env: dict[str, str]):
    """Who asks for no telemetry gets none, and does not even wait for its import."""
    assert run(SET_UP + PRINT, **env) == ("False", "")


@pytest.mark.parametrize(
    ("env", "found"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, "TracerProvider MeterProvider"),
        (
            {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1/v1/traces"},
            "TracerProvider _ProxyMeterProvider",
        ),
        ({"OTEL_METRICS_EXPORTER": "console"}, "ProxyTracerProvider MeterProvider"),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
                "OTEL_METRICS_EXPORTER": "none",
            },
            "TracerProvider _ProxyMeterProvider",
        ),
    ],
    ids=lambda given: ",".join(given) if isinstance(given, dict) else "",
)
def test_each_signal_is_set_up_as_asked(env: dict[str, str], found: str):
    """One endpoint is for both signals; each can have its own, or none."""
    out, _err = run(SET_UP + PROVIDER + "import os\nsys.stdout.flush()\nos._exit(0)", **env)

    assert out == found


def test_sdk_of_the_program_stays():
    """A program that has set up its own SDK keeps it, without a warning."""
    own = (
        "from opentelemetry import trace\n"
        "from opentelemetry.sdk.trace import TracerProvider\n"
        "own = TracerProvider()\n"
        "trace.set_tracer_provider(own)\n"
    )
    out, err = run(
        own + SET_UP + "print(trace.get_tracer_provider() is own)\n",
        OTEL_TRACES_EXPORTER="console",
    )

    assert (out, err) == ("True", "")


def test_missing_extra_is_named():
    """Variables that need the SDK where it is not installed: one warning with the fix."""
    missing = "sys.modules['opentelemetry.sdk.resources'] = None\n"

    out, err = run(missing + SET_UP + "print('runs')\n", OTEL_TRACES_EXPORTER="otlp")

    assert out == "runs"
    assert "pip install 'busmicro[otel]'" in err
    assert "OTEL_TRACES_EXPORTER is set" in err


def test_unknown_exporter_is_named_and_left_out():
    """A misspelt exporter does not keep a service from starting."""
    out, err = run(SET_UP + "print('runs')\n", OTEL_TRACES_EXPORTER="zipkinn")

    assert out == "runs"
    assert "no exporter 'zipkinn' for traces is installed" in err
