"""The one place where nats-py's errors become busmicro's."""

from __future__ import annotations

import binascii
import re
import ssl

import nats.errors
from nkeys import NkeysError  # type: ignore[import-untyped]

from busmicro.errors import (
    BusmicroError,
    DeadlineExceeded,
    Disconnected,
    InvalidArgument,
    ResourceExhausted,
    SetupError,
    Unauthenticated,
)

_DENIED = re.compile(
    r'permissions violation for (publish|subscription) to "([^"\s]+)', re.IGNORECASE
)

MAPPED: dict[type[BaseException], type[BusmicroError]] = {
    nats.errors.AuthorizationError: Unauthenticated,
    nats.errors.InvalidUserCredentialsError: SetupError,
    nats.errors.TimeoutError: DeadlineExceeded,
    nats.errors.FlushTimeoutError: DeadlineExceeded,
    nats.errors.DrainTimeoutError: DeadlineExceeded,
    nats.errors.NoServersError: Disconnected,
    nats.errors.ConnectionClosedError: Disconnected,
    nats.errors.ConnectionDrainingError: Disconnected,
    nats.errors.ConnectionReconnectingError: Disconnected,
    nats.errors.StaleConnectionError: Disconnected,
    nats.errors.UnexpectedEOF: Disconnected,
    nats.errors.ProtocolError: Disconnected,
    nats.errors.OutboundBufferLimitError: ResourceExhausted,
    nats.errors.MaxPayloadError: ResourceExhausted,
    nats.errors.SlowConsumerError: ResourceExhausted,
    nats.errors.BadSubjectError: InvalidArgument,
    nats.errors.BadHeaderError: InvalidArgument,
    nats.errors.SecureConnRequiredError: SetupError,
    nats.errors.SecureConnWantedError: SetupError,
    nats.errors.SecureConnFailedError: SetupError,
}
"""What reaches a caller of the transport, by nats-py's class."""

INTERNAL: frozenset[type[Exception]] = frozenset(
    {
        nats.errors.Error,  # the base class; `explain` reads its text
        nats.errors.NoRespondersError,  # busmicro keeps its own replies
        nats.errors.BadSubscriptionError,
        nats.errors.BadTimeoutError,
        nats.errors.JsonParseError,
        nats.errors.InvalidCallbackTypeError,
        nats.errors.ServerNotInPoolError,
        nats.errors.NotJSMessageError,
        nats.errors.MsgAlreadyAckdError,
    }
)
"""What nats-py raises only in parts of it that busmicro does not use."""


def denied_subject(text: str) -> tuple[str, str] | None:
    """Read a permissions violation.

    Returns:
        `publish` or `subscription`, and the subject; None for any other text. The subject may
        have lost its capitals: nats-py lowers the whole line.
    """
    found = _DENIED.search(text)
    return (found[1].lower(), found[2]) if found else None


def is_refusal(error: BaseException) -> bool:
    """Tell whether trying again is pointless: the server or the settings say no."""
    if isinstance(error, nats.errors.AuthorizationError | ssl.SSLCertVerificationError):
        return True
    text = str(error).lower()
    return "authorization violation" in text or "authentication" in text


def _is_setup(error: BaseException) -> bool:
    """Tell whether it is about a file or a key that the settings name."""
    if isinstance(error, OSError) and error.filename is not None:
        return True
    return isinstance(error, NkeysError | binascii.Error) or MAPPED.get(type(error)) is SetupError


def explain(error: BaseException, url: str) -> BusmicroError:
    """Turn a failure to connect into an error that says what to do."""
    where = hide_secrets(url)
    if isinstance(error, ssl.SSLCertVerificationError):
        return SetupError(
            f"{where} shows a certificate that is not trusted ({error.verify_message}); "
            "set BUSMICRO_TLS_CA, or BUSMICRO_TLS_HOSTNAME if the name differs"
        )
    if _is_setup(error):
        return SetupError(
            f"a BUSMICRO_ setting cannot be used: {str(error) or type(error).__name__}"
        )
    if is_refusal(error):
        return Unauthenticated(
            f"{where} refuses these credentials; set BUSMICRO_USER and BUSMICRO_PASSWORD, "
            "BUSMICRO_TOKEN, BUSMICRO_NKEY_SEED or BUSMICRO_CREDS",
            not_run=True,
        )
    return Disconnected(
        f"cannot reach NATS at {where}: {str(error) or type(error).__name__}", not_run=True
    )


def hide_secrets(url: str) -> str:
    """Return a URL, or several with commas between, without user and password."""
    return re.sub(r"//[^/@,]*@", "//", url)
