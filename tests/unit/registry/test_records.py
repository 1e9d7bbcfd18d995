"""What travels: heartbeats, descriptions, `$SRV` answers, and names of buckets."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busmicro.registry import Description, EndpointRecord, Node, ServiceRecord
from busmicro.registry.base import assemble, fingerprint, without_schemas
from busmicro.registry.discovery import merge
from busmicro.registry.kv import (
    MAX_HEARTBEAT_BYTES,
    decode_description,
    decode_node,
    encode_description,
    encode_node,
)
from busmicro.transport import bucket_name

NODE = Node(
    service="greeter",
    id="a1b2c3d4e5f6",
    version="1.2.3",
    started="2026-01-01T00:00:00.000Z",
    metadata={"region": "eu-west-1", "type": "helloworld", "commit": "0123456789abcdef"},
    running=1024,
    description="0123456789abcdef01234567",
)
WORDS = st.from_regex(r"[A-Za-z0-9_-]{1,12}", fullmatch=True)


def described(*names: str) -> Description:
    return Description(
        service="greeter",
        endpoints=tuple(
            EndpointRecord(name=n, subject=f"rpc.greeter.{n}", request={"type": "object"})
            for n in names
        ),
    )


def test_a_heartbeat_is_small() -> None:
    """A node with three labels fits into 512 bytes with room to spare."""
    payload = encode_node(NODE, 30.0)

    assert len(payload) <= MAX_HEARTBEAT_BYTES
    assert json.loads(payload) == {
        "v": 1,
        "version": "1.2.3",
        "started": "2026-01-01T00:00:00.000Z",
        "metadata": {"region": "eu-west-1", "type": "helloworld", "commit": "0123456789abcdef"},
        "running": 1024,
        "description": "0123456789abcdef01234567",
        "ttl": 30.0,
    }


@given(
    service=WORDS,
    id=WORDS,
    metadata=st.dictionaries(WORDS, st.text(max_size=20), max_size=4),
    running=st.integers(0, 10_000),
)
def test_what_a_node_says_is_read_as_it_was_said(
    service: str,
    id: str,
    metadata: dict[str, str],
    running: int,
) -> None:
    """Writing and reading a heartbeat loses nothing."""
    said = Node(service=service, id=id, metadata=metadata, running=running, description="d")

    assert decode_node(f"node.{service}.{id}", encode_node(said, 7.5)) == (said, 7.5)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("node.greeter", b'{"v":1,"version":"1.0.0","ttl":30}'),
        ("node.greeter.a.b", b'{"v":1,"version":"1.0.0","ttl":30}'),
        ("node.gre=eter.a", b'{"v":1,"version":"1.0.0","ttl":30}'),
        ("node.greeter.a", b""),
        ("node.greeter.a", b"\xff\xfe"),
        ("node.greeter.a", b"null"),
        ("node.greeter.a", b'{"version":"1.0.0","ttl":30}'),
        ("node.greeter.a", b'{"v":2,"version":"1.0.0","ttl":30}'),
        ("node.greeter.a", b'{"v":1,"version":"1.0.0"}'),
        ("node.greeter.a", b'{"v":1,"version":"1.0.0","ttl":-1}'),
        ("node.greeter.a", b'{"v":1,"version":"1.0.0","ttl":1e400}'),
        ("node.greeter.a", b'{"v":1,"version":"1.0.0","ttl":30,"metadata":{"a":{}}}'),
    ],
)
def test_what_is_no_heartbeat_is_refused_with_one_kind_of_error(key: str, value: bytes) -> None:
    """Whatever is in the bucket ends as ValueError, which readers skip."""
    with pytest.raises(ValueError, match=r"."):
        decode_node(key, value)


@given(payload=st.binary(max_size=60))
def test_random_bytes_are_no_record(payload: bytes) -> None:
    """Readers meet nothing but ValueError."""
    for decode, key in ((decode_node, "node.g.a"), (decode_description, "service.g.h")):
        with pytest.raises(ValueError, match=r"."):
            decode(key, payload)


def test_a_description_is_read_as_it_was_written() -> None:
    """Schemas and all, under the service and hash of its key."""
    said = described("hello", "Greeter.wave")

    payload = encode_description(said, 10_000)

    assert decode_description("service.greeter.h1", payload) == (("greeter", "h1"), said)


def test_a_description_too_long_to_send_goes_without_schemas() -> None:
    """What cannot travel whole travels without what is longest, rather than not at all."""
    said = described("hello")

    payload = encode_description(said, 60)

    assert decode_description("service.greeter.h1", payload)[1] == without_schemas(said)


def test_equal_descriptions_have_the_same_hash_and_others_do_not() -> None:
    """The hash is what nodes share a description by."""
    assert fingerprint(described("hello")) == fingerprint(described("hello"))
    assert fingerprint(described("hello")) != fingerprint(described("bye"))
    assert re.fullmatch(r"[0-9a-f]{24}", fingerprint(described("hello")))


def test_every_namespace_has_a_bucket_of_its_own() -> None:
    """Also those that differ in a dot only, and the one that is called like the default."""
    namespaces = ["", "bus", "team", "team.a", "team_a", "a.b_c", "a_b.c", "a.b.c"]

    names = [bucket_name(namespace, "registry") for namespace in namespaces]

    assert names[:1] == ["bus-registry"]
    assert names[2] == "team-registry"
    assert len(set(names)) == len(namespaces)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in names)


def test_nodes_and_shared_descriptions_become_services() -> None:
    """Sorted by name and id; a node whose description is missing is shown without."""
    nodes = [
        Node(service="b", id="2", description="h"),
        Node(service="b", id="1", description="gone"),
        Node(service="a", id="3"),
    ]

    services = assemble(nodes, {("b", "h"): described("hello")})

    assert [(s.name, [n.id for n in s.nodes]) for s in services] == [
        ("a", ["3"]),
        ("b", ["1", "2"]),
    ]
    assert services[1].descriptions == {"2": described("hello")}


def test_two_views_of_the_same_services_become_one() -> None:
    """A node is listed once; what the first view knows of it wins."""
    known = [ServiceRecord(name="g", nodes=(Node(service="g", id="1", running=3),))]
    answered = [
        ServiceRecord(name="g", nodes=(Node(service="g", id="0"), Node(service="g", id="1"))),
        ServiceRecord(name="f", nodes=(Node(service="f", id="9"),)),
    ]

    merged = merge(known, answered)

    assert [(s.name, [(n.id, n.running) for n in s.nodes]) for s in merged] == [
        ("f", [("9", 0)]),
        ("g", [("0", 0), ("1", 3)]),
    ]
