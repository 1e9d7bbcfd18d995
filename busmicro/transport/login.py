"""Who this process is to a server: what the settings say about it, in nats-py's words."""

from __future__ import annotations

import ssl
from typing import Any

from busmicro.errors import SetupError
from busmicro.settings import Settings


def login_options(settings: Settings) -> dict[str, Any]:
    """Return what nats-py's `connect` is to be given.

    Raises:
        SetupError: A file for TLS is not there or cannot be used.
    """
    s = settings
    options: dict[str, Any] = {
        "name": s.name or None,
        "connect_timeout": s.connect_timeout,
        "ping_interval": s.ping_interval,
        "max_outstanding_pings": 2,
        "inbox_prefix": s.inbox_prefix,
        "user": s.user,
        "password": s.password.get_secret_value() if s.password else None,
        "token": s.token.get_secret_value() if s.token else None,
        "nkeys_seed_str": s.nkey_seed.get_secret_value() if s.nkey_seed else None,
        "user_credentials": str(s.creds) if s.creds else None,
        "tls_handshake_first": s.tls_first,
    }
    if s.tls_ca or s.tls_cert or s.tls_first:
        options["tls"] = _tls_context(s)
    if s.tls_hostname:
        options["tls_hostname"] = s.tls_hostname
    return options


def _tls_context(settings: Settings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.tls_ca)
        if settings.tls_cert:
            context.load_cert_chain(settings.tls_cert, settings.tls_key)
    except OSError as unusable:  # ssl.SSLError is one; it does not say which file
        raise SetupError(
            "BUSMICRO_TLS_CA, BUSMICRO_TLS_CERT and BUSMICRO_TLS_KEY must name PEM files that "
            f"can be read and belong together ({unusable})"
        ) from unusable
    return context
