"""An event as it came in, and the `Call` that wrappers and handlers see of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from busmicro.call import Call, Decode, Spec
from busmicro.errors import CallError, CodecError, InvalidArgument
from busmicro.headers import FIND_CONTENT_TYPE, Headers, find
from busmicro.pubsub.topic import Topic


class Arrival:
    """One event that came in."""

    __slots__ = ("ack", "header", "payload", "subject")

    def __init__(self, subject: bytes, ack: bytes, header: bytes, payload: bytes) -> None:
        self.subject = subject
        """Where it was published."""
        self.ack = ack
        """Where to say what became of it; empty if no stream keeps it."""
        self.header = header
        """Its header block, or empty."""
        self.payload = payload
        """The event."""


class Reader:
    """Makes calls of the events of one topic; what does not change from event to event is ready."""

    def __init__(self, spec: Spec, topic: Topic[Any]) -> None:
        self._spec = spec
        self._coders = topic.coders
        plain = topic.coders.find("") or topic.coders.default
        self._plain = plain.decode
        self._usual = topic.coder.decode
        self._usual_line = b"\r\nContent-Type: %b\r\n" % topic.coder.content_type.encode()

    def call(self, arrival: Arrival) -> Call:
        """Return the call of an event; it is decoded when somebody reads its message."""
        header = arrival.header
        return Call(
            self._spec,
            payload=arrival.payload,
            decode=self._decoder(header) if header else self._plain,
            block=header,
            subject=arrival.subject,
            ack=arrival.ack,
        )

    def message(self, arrival: Arrival) -> object:
        """Decode an event.

        Raises:
            InvalidArgument: It does not decode; `details` says where.
        """
        return self.call(arrival).message

    def call_of_many(self, arrivals: Sequence[Arrival]) -> tuple[Call, dict[Arrival, CallError]]:
        """Return one call of many events, and those that do not decode, which are not in it."""
        messages: list[object] = []
        wrong: dict[Arrival, CallError] = {}
        for arrival in arrivals:
            try:
                messages.append(self.message(arrival))
            except InvalidArgument as unreadable:
                wrong[arrival] = unreadable
        first = arrivals[0]
        call = Call(self._spec, messages, headers=Headers({}), subject=first.subject)
        return call, wrong

    def _decoder(self, header: bytes) -> Decode:
        """Choose how to decode; what busmicro itself has written is recognised at a glance."""
        if self._usual_line in header:
            return self._usual
        content_type = find(header, header.lower(), FIND_CONTENT_TYPE).decode("utf-8", "replace")
        try:
            return self._coders.require(content_type).decode
        except CodecError as unknown:
            return _refuse(unknown)


def _refuse(error: CodecError) -> Decode:
    """Make a decoder that fails inside the chain, where a bad payload fails too."""

    def decode(_payload: bytes) -> object:
        raise error

    return decode
