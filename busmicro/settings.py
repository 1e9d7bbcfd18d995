"""Settings: one value for everything that can be set from outside, read from `BUSMICRO_*`.

The command line's flags, the environment and code all end up here; the rest of the package reads
this and nothing else.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from busmicro.errors import SetupError

DEFAULT_URL = "nats://127.0.0.1:4222"
MEMORY_SCHEME = "memory://"
URL_SCHEMES = ("nats://", "tls://", "ws://", "wss://", MEMORY_SCHEME)
_MEMORY_URL = re.compile(r"memory://[A-Za-z0-9_.-]+")


class Settings(BaseSettings):
    """How a process connects and how much it takes on."""

    model_config = SettingsConfigDict(
        env_prefix="BUSMICRO_",
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        defer_build=True,
    )

    nats_url: str = DEFAULT_URL
    """Where NATS is: one URL, or several with commas between (`nats://`, `tls://`, `ws://`);
    `memory://name` for a bus inside this process."""
    namespace: str = ""
    """A prefix that keeps services with the same names apart on one server."""
    name: str = ""
    """The connection's name, shown in the server's own monitoring."""

    user: str | None = None
    """With `password`."""
    password: SecretStr | None = None
    """With `user`."""
    token: SecretStr | None = None
    """Instead of user and password."""
    nkey_seed: SecretStr | None = None
    """An nkey seed (`SU…`)."""
    creds: Path | None = None
    """A credentials file, as `nsc` writes it."""

    tls_ca: Path | None = None
    """The authority that signed the server's certificate, PEM."""
    tls_cert: Path | None = None
    """This client's certificate, PEM, for servers that ask for one."""
    tls_key: Path | None = None
    """The key that belongs to `tls_cert`, PEM."""
    tls_hostname: str | None = None
    """The name on the server's certificate, if it is not the URL's."""
    tls_first: bool = False
    """Begin with TLS, before the server has said anything."""

    inbox_prefix: str = "_INBOX"
    """Where replies arrive; permissions may ask for one of your own, like `_INBOX.alice`."""
    connect_timeout: float = Field(default=2.0, gt=0)
    """Seconds for one attempt to connect."""
    ping_interval: float = Field(default=5.0, gt=0)
    """Seconds between pings; a connection that misses two is given up."""
    reconnect_max_wait: float = Field(default=2.0, gt=0)
    """Seconds at most between two attempts to come back."""
    max_buffered_bytes: int = Field(default=64 * 1024 * 1024, gt=0)
    """Bytes that may wait to be sent, connected or not; beyond it publishing is refused."""

    max_running: int = Field(default=1024, gt=0)
    """Requests a service works on at once; the next one is answered `resource_exhausted`."""
    max_streams: int = Field(default=10_000, gt=0)
    """Streams that may be open in this process, at either end."""
    max_streams_per_caller: int = Field(default=256, gt=0)
    """Streams that one caller's connection may have on a node; the next one is refused."""
    stream_window: int = Field(default=256, ge=1, le=65_536)
    """Messages of a stream that may wait here for whoever takes them."""
    stream_window_bytes: int = Field(default=2 * 1024 * 1024, ge=1, le=256 * 1024 * 1024)
    """Bytes that may wait so; one message more may go beyond it."""
    stream_ping_interval: float = Field(default=5.0, gt=0)
    """Seconds of silence after which the other end of a stream is asked for a sign of life; the
    third time it is given up."""
    stream_grace: float = Field(default=0.06, ge=0)
    """Seconds that the other end may be missing from NATS, as while it connects again."""
    stream_idle_timeout: float | None = Field(default=None, gt=0)
    """Seconds after which a stream without messages is ended; left out, never."""
    max_message_bytes: int = Field(default=64 * 1024 * 1024, gt=0)
    """What one message of a stream may weigh that does not fit one frame."""
    claim_check_bytes: int | None = Field(default=None, ge=1)
    """Messages of streams that weigh more go through JetStream's object store; left out, never."""
    grace_period: float = Field(default=30.0, ge=0)
    """Seconds that running requests get to finish when a service stops."""
    strict_replies: bool = False
    """Answer only on subjects below `_INBOX.` or `inbox_prefix`."""
    registry_ttl: float = Field(default=30.0, ge=1)
    """Seconds after which a node that has fallen silent is forgotten."""

    metrics_port: int | None = Field(default=None, ge=0, le=65_535)
    """Where a service answers `/metrics`, `/health/live` and `/health/ready` over HTTP; 0 for any
    port that is free, left out for none."""
    metrics_host: str = "127.0.0.1"
    """The address that goes with it; `0.0.0.0` for every one of this machine."""

    @field_validator("nats_url")
    @classmethod
    def _known_scheme(cls, value: str) -> str:
        for url in value.split(","):
            if "://" in url and not url.strip().startswith(URL_SCHEMES):
                raise ValueError(f"must begin with one of {', '.join(URL_SCHEMES)}")
        if MEMORY_SCHEME in value and not _MEMORY_URL.fullmatch(value):
            raise ValueError("must be memory://name, one word, and the only URL")
        return value

    @property
    def urls(self) -> list[str]:
        """The servers, one by one."""
        return [url.strip() for url in self.nats_url.split(",") if url.strip()]

    @classmethod
    def load(cls, **given: object) -> Self:
        """Read the environment; what is given here and is not None wins over it.

        Raises:
            SetupError: A value is out of range or unknown; the text names the setting.
        """
        try:
            return cls(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
        except ValidationError as wrong:
            faults = [(str(fault["loc"][0]), fault["msg"]) for fault in wrong.errors()]
            lines = [f"{name} (or BUSMICRO_{name.upper()}): {says}" for name, says in faults]
            raise SetupError("wrong settings: " + "; ".join(lines)) from wrong
