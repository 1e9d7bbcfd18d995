"""The events of a topic as they come in: each becomes the `Call` that wrappers and handlers see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from busmicro.call import Call, Decode, Spec, received
from busmicro.errors import CallError, CodecError, InvalidArgument
from busmicro.headers import FIND_CE_DATA_TYPE, FIND_CONTENT_TYPE, Headers, find
from busmicro.pubsub.topic import Topic


class Reader:
    """Makes calls of the events of one topic; what does not change from event to event is ready."""

    def __init__(self, spec: Spec, topic: Topic[Any]) -> None:
        self._spec = spec
        self._coders = topic.coders
        plain = topic.coders.find("") or topic.coders.default
        self._plain = plain.decode
        self._usual = topic.coder.decode
        self._usual_line = b"\r\nContent-Type: %b\r\n" % topic.coder.content_type.encode()

    def call(self, subject: bytes, ack: bytes, header: bytes, payload: bytes) -> Call:
        """Return the call of an event; it is decoded when somebody reads its message."""
        decode = self._decoder(header) if header else self._plain
        return received(self._spec, decode, payload, header, None, subject, ack)

    def call_of_many(self, calls: Sequence[Call]) -> tuple[Call, dict[Call, CallError]]:
        """Return one call of many events, and those that do not decode, which are not in it."""
        messages: list[object] = []
        wrong: dict[Call, CallError] = {}
        for call in calls:
            try:
                messages.append(call.message)
            except InvalidArgument as unreadable:
                wrong[call] = unreadable
        subject = calls[0].subject_bytes
        return Call(self._spec, messages, headers=Headers({}), subject=subject), wrong

    def _decoder(self, header: bytes) -> Decode:
        """Choose how to decode; what busmicro itself has written is recognised at a glance."""
        if self._usual_line in header:
            return self._usual
        lowered = header.lower()
        said = find(header, lowered, FIND_CONTENT_TYPE) or find(header, lowered, FIND_CE_DATA_TYPE)
        content_type = said.decode("utf-8", "replace")
        try:
            return self._coders.require(content_type).decode
        except CodecError as unknown:
            return _refuse(unknown)


def _refuse(error: CodecError) -> Decode:
    """Make a decoder that fails inside the chain, where a bad payload fails too."""

    def decode(_payload: bytes) -> object:
        raise error

    return decode
