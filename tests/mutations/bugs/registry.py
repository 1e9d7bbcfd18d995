"""Bugs in the registry, in its buckets, and in what a node says of its health."""

from __future__ import annotations

from tests.mutations.bug import Bug

BUGS = (
    Bug(
        "believes an old snapshot that a node is there which has said good-bye",
        "registry/watch.py",
        "if not self._is_outdated(key, sighting, since):",
        "if True:",
        ("unit/registry/test_watch.py",),
    ),
    Bug(
        "does not remember who has said good-bye",
        "registry/watch.py",
        "self._left[service, node] = self._clock.now()",
        "pass",
        ("unit/registry/test_watch.py",),
    ),
    Bug(
        "forgets the time that a node has left when it is patient",
        "registry/watch.py",
        "sighting.expires = max(sighting.expires, until)",
        "sighting.expires = until",
        ("unit/registry/test_patience.py",),
    ),
    Bug(
        "does not tell a watcher that fell behind who has left",
        "registry/watch.py",
        "gone = [node for key, node in self._told.items() if key not in there]",
        "gone = list[Node]()",
        ("unit/registry/test_watch.py",),
    ),
    Bug(
        "tells a watcher twice that a node has left",
        "registry/watch.py",
        "self._told.pop(key, None)",
        "pass",
        ("unit/registry/test_patience.py",),
    ),
    Bug(
        "takes every heartbeat for news",
        "registry/base.py",
        'return before.model_copy(update={"running": 0}) '
        '!= after.model_copy(update={"running": 0})',
        "return before != after",
        ("unit/registry", "promises/test_registry.py"),
    ),
    Bug(
        "gives two descriptions one hash",
        "registry/base.py",
        'canonical = json.dumps(description.model_dump(mode="json"), sort_keys=True)',
        "canonical = description.service",
        ("unit/registry/test_records.py", "promises/test_registry.py"),
    ),
    Bug(
        "renews a node without its time to live",
        "registry/kv.py",
        "await self.bucket.put(_node_key(node), encode_node(node, self._ttl), ttl=self._ttl)",
        "await self.bucket.put(_node_key(node), encode_node(node, self._ttl))",
        (
            "nats/registry/test_bucket.py::test_a_heartbeat_is_small_and_carries_the_load_of_the_moment",
        ),
    ),
    Bug(
        "lets a description run out while nodes still use it",
        "registry/kv.py",
        "if age >= third:",
        "if known is None:",
        ("nats/registry/test_descriptions.py",),
    ),
    Bug(
        "takes everybody to be gone while nobody can be heard",
        "registry/kv.py",
        "if self._trusted:  # else nobody can be heard: the last good copy stays",
        "if True:",
        ("nats/registry/test_bucket.py::test_the_last_good_view_stays_while_nobody_can_be_heard",),
    ),
    Bug(
        "takes whoever has yet to write to a new bucket to be gone",
        "registry/kv.py",
        "is_new = self._bucket.created != self._created"
        "  # then whoever is missing has yet to write",
        "is_new = False",
        (
            "nats/registry/test_bucket.py::test_a_view_is_true_again_soon_after_the_server_was_killed_and_restarted",
        ),
    ),
    Bug(
        "tells everybody that a node has more than none running",
        "registry/kv.py",
        'node = own.node.model_copy(update={"running": max(0, self.running())})',
        "node = own.node",
        (
            "nats/registry/test_bucket.py::test_a_heartbeat_is_small_and_carries_the_load_of_the_moment",
        ),
    ),
    Bug(
        "believes its own, older word of a node",
        "registry/discovery.py",
        "nodes = {node.id: node for node in (*other.nodes, *record.nodes)}",
        "nodes = {node.id: node for node in (*record.nodes, *other.nodes)}",
        ("nats/registry/test_discovery.py", "unit/registry"),
    ),
    Bug(
        "never comes to a registry that was not there at the start",
        "registry/discovery.py",
        "self.kv.keep(node, description)",
        "pass",
        ("nats/registry/test_discovery.py",),
    ),
    Bug(
        "complains of the registry again and again",
        "registry/discovery.py",
        "if not self._said:",
        "if True:",
        ("nats/registry/test_discovery.py",),
    ),
    Bug(
        "shows nodes of other namespaces",
        "registry/srv.py",
        "if namespace:",
        "if False:",
        ("nats/registry/test_srv.py", "promises/test_registry.py"),
    ),
    Bug(
        "rounds the timeout of an endpoint to six digits",
        "registry/srv.py",
        'found["busmicro.timeout"] = str(endpoint.timeout).removesuffix(".0")',
        'found["busmicro.timeout"] = f"{endpoint.timeout:g}"',
        ("unit/registry/test_any_description.py",),
    ),
    Bug(
        "answers $SRV wherever a stranger wants it to",
        "registry/srv.py",
        "if not reply or not self.replies_allowed.allows(reply):",
        "if not reply:",
        (
            "nats/registry/test_srv.py",
            "nats/calls/test_reply_subjects.py",
            "nats/test_strangers.py",
        ),
    ),
    Bug(
        "takes the marker of an expired key for a value",
        "transport/buckets.py",
        r'return not payload or b"\r\nKV-Operation:" in header '
        r'or b"\r\nNats-Marker-Reason:" in header',
        r'return b"\r\nKV-Operation:" in header',
        ("nats/test_jetstream.py::test_the_marker_of_a_key_whose_time_is_over_is_no_value",),
    ),
    Bug(
        "leaves a marker for ever of everybody who ever was",
        "transport/buckets.py",
        'lines.append(("Nats-TTL", _ttl(_MARKER_TTL)))',
        "pass",
        ("nats/test_jetstream.py::test_what_marks_a_deleted_key_does_not_stay_for_ever",),
    ),
    Bug(
        "reads no bucket with more keys than the server gives at once",
        "transport/buckets.py",
        "if status == 413:  # more keys than the server gives at once",
        "if False:",
        ("nats/test_jetstream.py::test_a_snapshot_of_more_than_the_server_gives_at_once_is_whole",),
    ),
    Bug(
        "tells the age of a key by its own clock",
        "transport/buckets.py",
        'written = _seconds(fields.get("Nats-Time-Stamp", ""), now)',
        "written = now",
        ("nats/registry/test_descriptions.py",),
    ),
    Bug(
        "takes a check that returns nothing for failed",
        "health.py",
        "if await check.function() is False:",
        "if not await check.function():",
        ("unit/test_health.py",),
    ),
    Bug(
        "leaves the group when a check fails that is not critical",
        "health.py",
        "return [o.check.name for o in outcomes if o.check.critical and not o.passed]",
        "return [o.check.name for o in outcomes if not o.passed]",
        ("unit/test_health.py", "nats/test_health_checks.py"),
    ),
    Bug(
        "comes back because nobody can be asked",
        "health.py",
        "return self.status == AWAY  # nothing is known, so nothing changes",
        "return False",
        ("unit/test_health.py", "nats/test_health_checks.py"),
    ),
    Bug(
        "leaves although no other node serves",
        "health.py",
        "if helped and self.status == FAILING:",
        "if self.status == FAILING:",
        ("unit/test_health.py", "nats/test_health_checks.py"),
    ),
    Bug(
        "shows in the reasons what a check has raised",
        "health.py",
        'errors.append(f"it raised {type(failure).__name__}; the log of the node says more")',
        'errors.append(f"it raised {failure}")',
        ("unit/test_health.py", "nats/test_health_checks.py"),
    ),
)
