"""Whatever a service is like, others read of it what it has said, by either registry."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from busmicro.registry import Description, EndpointRecord, Node
from busmicro.registry.base import ServiceStats, fingerprint, without_schemas
from busmicro.registry.kv import decode_description, encode_description
from busmicro.registry.srv import _Info, _records, _Responder

WORDS = st.from_regex(r"[A-Za-z0-9-]{1,8}", fullmatch=True)
NAMES = st.lists(WORDS, min_size=1, max_size=2).map(".".join)
SCHEMAS = st.none() | st.dictionaries(
    st.text(max_size=8),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner),
        max_leaves=4,
    ),
    max_size=2,
)
LABELS = st.dictionaries(WORDS, st.text(max_size=8), max_size=2)
KINDS = st.sampled_from(["unary", "server_stream", "client_stream", "both"])
ENDPOINTS = st.builds(
    lambda name, **more: EndpointRecord(name=name, subject=f"rpc.shop.{name}", **more),
    NAMES,
    kind=KINDS,
    idempotent=st.booleans(),
    timeout=st.none() | st.floats(0, 86_400, exclude_min=True),
    doc=st.text(max_size=20),
    request=SCHEMAS,
    reply=SCHEMAS,
    metadata=LABELS,
)
DESCRIPTIONS = st.lists(ENDPOINTS, max_size=4).map(
    lambda endpoints: Description(service="shop", endpoints=tuple(endpoints))
)


@given(DESCRIPTIONS, st.integers(0, 2_000))
def test_description_in_a_bucket_is_read_as_it_was_written(said: Description, limit_bytes: int):
    """Whole, or without its schemas where it would be too long; under its own service and hash."""
    whole = encode_description(said, 10**6)
    short = encode_description(said, limit_bytes)

    names, read = decode_description(f"service.shop.{fingerprint(said)}", whole)
    assert names == ("shop", fingerprint(said))
    assert read == said
    expected = said if len(whole) <= limit_bytes else without_schemas(said)
    assert decode_description("service.shop.h", short)[1] == expected


@given(DESCRIPTIONS, LABELS, st.sampled_from(["", "team.a"]))
def test_description_in_an_answer_is_read_as_it_was_written(
    said: Description, labels: dict[str, str], namespace: str
):
    """What `$SRV.INFO` says of a node and its endpoints is what the node had to say."""
    started = "2026-01-01T00:00:00.000Z"
    node = Node(service="shop", id="n1", version="1.2.3", started=started, metadata=labels)
    responder = _Responder(node, said, namespace, ServiceStats)

    info = _Info.model_validate_json(responder.answer("INFO", 10**6))
    (record,) = _records([info])

    assert record.nodes == (node,)
    assert record.descriptions["n1"] == said
