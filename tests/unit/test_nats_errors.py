"""The client library's errors become busmicro's in one place, and none slips through."""

from __future__ import annotations

import inspect
import ssl

import nats.errors
import nkeys
import pytest

from busmicro.errors import BusmicroError, Disconnected, SetupError, Unauthenticated
from busmicro.transport.errors import (
    INTERNAL,
    MAPPED,
    denied_subject,
    explain,
    hide_secrets,
    is_refusal,
)

CLASSES = [
    member
    for _name, member in inspect.getmembers(nats.errors, inspect.isclass)
    if issubclass(member, Exception) and member.__module__ == "nats.errors"
]


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_every_error_of_the_client_library_is_known(error: type[Exception]):
    """A new version of the client library cannot bring an error nobody has thought about."""
    assert (error in MAPPED) != (error in INTERNAL)


@pytest.mark.parametrize("error", MAPPED.values(), ids=lambda error: error.__name__)
def test_every_known_error_becomes_one_of_ours(error: type[Exception]):
    """Nobody above the transport has to catch an error of the client library."""
    assert issubclass(error, BusmicroError)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            'nats: permissions violation for publish to "rpc.greeter.hello"',
            ("publish", "rpc.greeter.hello"),
        ),
        ("-ERR 'Permissions Violation for Publish to \"A.b\"'\r\n", ("publish", "A.b")),
        (
            '-ERR \'Permissions Violation for Subscription to "a.*" using queue "q"\'',
            ("subscription", "a.*"),
        ),
        ("-ERR 'Authorization Violation'", None),
        ("", None),
    ],
)
def test_denied_subject_is_read_from_the_servers_words(text: str, found: object):
    """Who may not use a subject is told which one."""
    assert denied_subject(text) == found


@pytest.mark.parametrize(
    ("error", "ours", "says"),
    [
        (nats.errors.AuthorizationError(), Unauthenticated, "BUSMICRO_USER"),
        (
            nats.errors.Error("nats: 'User Authentication Expired'"),
            Unauthenticated,
            "BUSMICRO_CREDS",
        ),
        (nats.errors.InvalidUserCredentialsError(), SetupError, "credentials"),
        (nats.errors.NoServersError(), Disconnected, "cannot reach"),
        (ConnectionRefusedError(111, "refused"), Disconnected, "refused"),
        (TimeoutError(), Disconnected, "TimeoutError"),
        (FileNotFoundError(2, "No such file", "ca.pem"), SetupError, "ca.pem"),
        (PermissionError(13, "Permission denied", "key.pem"), SetupError, "key.pem"),
        (IsADirectoryError(21, "Is a directory", "certs"), SetupError, "certs"),
        (nkeys.ErrInvalidSeed(), SetupError, "seed"),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_failure_to_connect_says_what_to_do(error: Exception, ours: type[BusmicroError], says: str):
    """A process that cannot connect says whether to wait, to log in or to mend a setting."""
    explained = explain(error, "nats://john:hunter2@bus:4222")

    assert type(explained) is ours
    assert says in str(explained)
    assert "hunter2" not in str(explained)


def test_wrong_certificate_names_the_setting():
    """A server whose certificate is not trusted is a matter of settings, not of waiting."""
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "self-signed certificate"

    explained = explain(error, "tls://bus:4222")

    assert type(explained) is SetupError
    assert "BUSMICRO_TLS_CA" in str(explained)
    assert is_refusal(error)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("nats://john:hunter2@bus:4222", "nats://bus:4222"),
        ("nats://token@bus,tls://a:b@c", "nats://bus,tls://c"),
        ("nats://bus:4222", "nats://bus:4222"),
    ],
)
def test_urls_are_shown_without_secrets(url: str, shown: str):
    """A URL in a log or an error never holds a password."""
    assert hide_secrets(url) == shown
