"""What anybody may write down as an object's metadata: taken only if it can be one of ours."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

from hypothesis import example, given
from hypothesis import strategies as st
from nats.js.errors import BadObjectMetaError, ObjectNotFoundError

from busmicro.transport.objects import _Store

DIGEST = "SHA-256=" + "A" * 43 + "="
WELL = {"name": "a", "bucket": "b", "nuid": "n1", "size": 1, "chunks": 1, "digest": DIGEST}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)
FIELDS = st.sampled_from([*WELL, "options", "headers", "deleted", "description"])
CHANGES = st.dictionaries(FIELDS, JSON, max_size=3)


@dataclass
class Kept:
    """A bucket that holds this metadata; what nats-py asks JetStream for."""

    data: bytes

    async def get_last_msg(self, _stream: str, _subject: str) -> Kept:
        return self


@given(st.binary(max_size=40) | CHANGES.map(lambda changes: json.dumps(WELL | changes).encode()))
@example(json.dumps(WELL | {"options": []}).encode())
@example(b"[" * 100_000)
def test_metadata_of_anybody_is_one_of_ours_or_refused(written: bytes):
    """A link, another digest or what is no metadata ends in an error of the object store."""
    store = _Store("b", "OBJ_b", Kept(written))  # type: ignore[arg-type]
    try:
        info = asyncio.run(store.get_info("a"))
    except (BadObjectMetaError, ObjectNotFoundError):
        return
    assert not info.is_link()
    assert str(info.digest).startswith("SHA-256=")
    assert str(info.nuid).isalnum()
