"""The events of a topic as they come in: each becomes the `Call` that wrappers and handlers see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from busmicro.call import Call, Decode, Spec, received
from busmicro.codecs import RAW
from busmicro.errors import CallError, CodecError, InvalidArgument
from busmicro.headers import (
    CONTENT_TYPE,
    FIND_CE_DATA_TYPE,
    FIND_CONTENT_TYPE,
    VERSION_LINE,
    Headers,
    encode_line,
    find,
)
from busmicro.pubsub.topic import Topic


class Reader:
    """Makes calls of the events of one topic; what does not change from event to event is ready."""

    def __init__(self, spec: Spec, topic: Topic[Any]) -> None:
        self._spec = spec
        self._coders = topic.coders
        plain = topic.coders.find("") or topic.coders.default
        self._plain = plain.decode
        self._usual = topic.coder.decode
        self._takes_anything = topic.coders.default.content_type == RAW
        self._usual_start = VERSION_LINE + encode_line(CONTENT_TYPE, topic.coder.content_type)

    def call(self, subject: bytes, ack: bytes, header: bytes, payload: bytes) -> Call:
        """Return the call of an event; it is decoded when somebody reads its message."""
        if not header:
            decode = self._plain
        elif header.startswith(self._usual_start):  # what busmicro writes is known at a glance
            decode = self._usual
        else:
            decode = self._decoder(header)
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
        many = Call(self._spec, messages, headers=Headers({}), subject=subject)
        many.parts = [call for call in calls if call not in wrong]
        return many, wrong

    def _decoder(self, header: bytes) -> Decode:
        """Choose how to decode by the content type that an event says it has."""
        if self._takes_anything:
            return self._plain  # bytes are bytes, whatever they are called
        lowered = header.lower()
        if b"content" not in lowered:
            return self._plain  # the usual case of events without a stream
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
