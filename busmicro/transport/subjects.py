"""Subjects: what the names of services become on the wire, and which names may exist.

Source: docs/protocol.md (Names), NATS ADR-6 and ADR-32.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from busmicro.errors import SetupError

QUEUE_GROUP = "q"
_TOKEN = re.compile(r"[A-Za-z0-9_-]+")
_ENDPOINT = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)?")
_NAMESPACE = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_LETTER = r"[^\s.*>\x00-\x1f\x7f\ud800-\udfff]"
_ONE_SUBJECT = re.compile(rf"(?!\$|_INBOX\.){_LETTER}+(\.{_LETTER}+)*")
_NUMBER = r"(0|[1-9][0-9]*)"
_PART = r"(0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_VERSION = re.compile(
    rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(-{_PART}(\.{_PART})*)?(\+[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?"
)
_RESERVED_WORK = ("rpc", "node", "cancel", "dlq", "schedules")
_RESERVED_FIRST = (*_RESERVED_WORK, "_INBOX")
_RESERVED_TOKENS = frozenset(word.encode() for word in _RESERVED_WORK)


def check_service(name: str) -> str:
    """Return the name of a service, or raise `SetupError` with the rule."""
    if not _TOKEN.fullmatch(name) or len(name) > 64:
        raise SetupError(
            f"service name {name!r}: use 1 to 64 letters, digits, _ and - (no dots, no blanks)"
        )
    return name


def check_node(node: str) -> str:
    """Return the id of a node, or raise `SetupError` with the rule."""
    if not _TOKEN.fullmatch(node) or len(node) > 64:
        raise SetupError(f"node id {node!r}: use 1 to 64 letters, digits, _ and -")
    return node


def check_endpoint(name: str) -> str:
    """Return the name of an endpoint, or raise `SetupError` with the rule."""
    if not _ENDPOINT.fullmatch(name) or len(name) > 128:
        raise SetupError(
            f"endpoint name {name!r}: use letters, digits, _ and -, "
            "one word or two with a dot between, like 'hello' or 'Greeter.hello'"
        )
    return name


def check_version(version: str) -> str:
    """Return a version, or raise `SetupError` with the rule."""
    if not _VERSION.fullmatch(version):
        raise SetupError(f"version {version!r}: use three numbers (semver), like '1.0.0'")
    return version


def check_namespace(namespace: str) -> str:
    """Return a namespace, or raise `SetupError` with the rule."""
    first = namespace.partition(".")[0]
    if namespace and (not _NAMESPACE.fullmatch(namespace) or first in _RESERVED_FIRST):
        raise SetupError(
            f"namespace {namespace!r}: use letters, digits, _ and -, dots between words, "
            f"and do not begin with {', '.join(_RESERVED_FIRST)}"
        )
    return namespace


def bucket_name(namespace: str, holds: str) -> str:
    """Return a bucket of a namespace: `<namespace or "bus">-<what it holds>`.

    A bucket's name has no dots, so `_` stands for them, followed by `-` and the first six hex
    digits of the namespace's SHA-256; also for the namespace `bus`, which is not the empty one.
    """
    name = namespace or "bus"
    if "." in namespace or namespace == "bus":
        digest = hashlib.sha256(namespace.encode()).hexdigest()[:6]
        name = f"{namespace.replace('.', '_')}-{digest}"
    return f"{name}-{holds}"


class Subjects:
    """The subjects of one namespace."""

    def __init__(self, namespace: str = "") -> None:
        self.namespace = check_namespace(namespace)
        self.prefix = f"{namespace}." if namespace else ""

    def rpc(self, service: str, endpoint: str) -> str:
        """Where calls go that any node of the service may take."""
        return f"{self.prefix}rpc.{service}.{endpoint}"

    def node(self, service: str, node: str, endpoint: str) -> str:
        """Where calls go that one node shall take."""
        return f"{self.prefix}node.{service}.{node}.{endpoint}"

    def cancel(self, service: str) -> str:
        """Where cancellations go; every node of the service listens."""
        return f"{self.prefix}cancel.{service}"

    def dead_letters(self, stream: str, consumer: str) -> str:
        """Where events go that a consumer of a stream could not handle."""
        return f"{self.prefix}dlq.{stream}.{consumer}"

    def schedule(self, stream: str, name: str) -> str:
        """Where a stream keeps an event that is to be published later."""
        return f"{self.prefix}schedules.{stream}.{name}"

    def stream(self, name: str) -> str:
        """What a stream is called on the server, where namespaces must not meet."""
        return self.prefix.replace(".", "-") + name


def matches(pattern: str, subject: str) -> bool:
    """Tell whether a subject falls under a pattern with `*` and `>`."""
    wanted, given = pattern.split("."), subject.split(".")
    for at, part in enumerate(wanted):
        if part == ">":
            return len(given) > at
        if at >= len(given) or part not in ("*", given[at]):
            return False
    return len(wanted) == len(given)


def may_be_named(subject: str) -> bool:
    """Tell whether a stranger may name this subject for us to publish on.

    It has to be one subject, without blanks and wildcards, that is neither the server's own nor
    somebody's inbox.
    """
    return _ONE_SUBJECT.fullmatch(subject) is not None


class ReplyPolicy:
    """Decides which reply subjects a service may be made to publish on.

    A caller names the reply subject, the service publishes there with the service's own
    permissions; so a caller must not be able to aim that at what only the service may write.
    """

    def __init__(self, prefix: str, inbox_prefix: str, *, strict: bool) -> None:
        self._inboxes = tuple({b"_INBOX.", f"{inbox_prefix}.".encode()})
        ours = {f"{before}{first}." for first in _RESERVED_WORK for before in ("", prefix)}
        self._reserved = (b"$", *(subject.encode() for subject in ours))
        self._strict = strict
        self._streams: tuple[str, ...] = ()

    def protect(self, subjects: Iterable[str]) -> None:
        """Reserve the subjects that streams capture, instead of those reserved before."""
        self._streams = tuple(subjects)

    def allows(self, reply: bytes) -> bool:
        """Tell whether an answer may go to this subject."""
        if reply.startswith(self._reserved):
            return False
        if reply.startswith(self._inboxes):
            return True
        if self._strict or not _RESERVED_TOKENS.isdisjoint(reply.split(b".")):
            return False  # a reserved word further on belongs to some other namespace
        subject = reply.decode("utf-8", "replace")
        return not any(matches(pattern, subject) for pattern in self._streams)

    def allows_below(self, address: bytes) -> bool:
        """Tell whether answers may go to this subject, and frames of a stream one word below it."""
        if not self.allows(address):
            return False
        if address.startswith(self._inboxes):
            return True
        subject = address.decode("utf-8", "replace")
        depth = subject.count(".") + 1
        for pattern in self._streams:
            words = pattern.split(".")
            frame = words[depth] if depth < len(words) else "*"
            if matches(pattern, f"{subject}.{frame}"):
                return False
        return True
