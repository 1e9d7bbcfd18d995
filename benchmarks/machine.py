"""On what the figures were measured."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

LIBRARIES = (
    "busmicro",
    "nats-py",
    "pydantic",
    "protobuf",
    "uvloop",
    "faststream",
    "cliffracer",
    "grpcio",
    "opentelemetry-sdk",
)


def lines() -> list[str]:
    """Say what machine, which Python and which libraries these are."""
    from busmicro.embedded import find_nats_server, nats_server_version

    system = f"{platform.system()} {platform.release()}"
    versions = ", ".join(f"{name} {version_of(name)}" for name in LIBRARIES)
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return [
        f"{os.cpu_count()} cores, {processor()}, {system}, {python}",
        f"nats-server {nats_server_version(find_nats_server())}, {versions}",
    ]


def processor() -> str:
    """Return what the processor calls itself."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.machine()


def version_of(name: str) -> str:
    """Return the version of a library, or that it is not there."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
