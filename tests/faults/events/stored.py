"""Reads a stream and its state through the server's JSON API."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

from tests.faults.events.history import Stored
from tests.faults.events.observer import Gone, Observer

_AT_ONCE = 200
_NO_MESSAGE = 10037


async def ask(observer: Observer, verb: str, **question: object) -> dict[str, Any]:
    """Ask the JetStream API, and ask again while there is no leader to answer."""
    async with asyncio.timeout(30):
        while True:
            try:
                reply = await observer.request(f"$JS.API.{verb}", json.dumps(question).encode())
                answer: dict[str, Any] = json.loads(reply)
            except (Gone, ValueError):  # no leader, or nobody who knows of one
                await asyncio.sleep(0.1)
                continue
            if answer.get("error", {}).get("code") != 503:
                return answer


async def raw_events(observer: Observer, stream: str) -> list[tuple[int, dict[str, str], bytes]]:
    """Return sequence, headers and payload of every event in a stream."""
    info = await ask(observer, f"STREAM.INFO.{stream}")
    assert "state" in info, f"{stream} cannot be read: {info.get('error')}"
    state = info["state"]
    events: list[tuple[int, dict[str, str], bytes]] = []
    for first in range(max(1, state["first_seq"]), state["last_seq"] + 1, _AT_ONCE):
        sequences = range(first, min(first + _AT_ONCE, state["last_seq"] + 1))
        answers = await asyncio.gather(
            *(ask(observer, f"STREAM.MSG.GET.{stream}", seq=sequence) for sequence in sequences)
        )
        events += [_event(answer["message"]) for answer in answers if not _is_gap(answer)]
    assert len(events) == state["messages"], f"read {len(events)} of {state['messages']} events"
    return events


async def read_stream(observer: Observer, stream: str) -> list[Stored]:
    """Return every order in a stream."""
    return [
        Stored(sequence, json.loads(payload)["id"], headers.get("Nats-Msg-Id", ""))
        for sequence, headers, payload in await raw_events(observer, stream)
    ]


async def leader_of(observer: Observer, stream: str) -> str:
    """Return the name of the server that leads a stream; empty while there is none."""
    info = await ask(observer, f"STREAM.INFO.{stream}")
    return str(info["cluster"].get("leader", ""))


async def is_replicated(observer: Observer, stream: str) -> bool:
    """Tell whether every replica of a stream is up to date with its leader."""
    cluster = (await ask(observer, f"STREAM.INFO.{stream}"))["cluster"]
    replicas = cluster.get("replicas", [])
    return bool(cluster.get("leader")) and all(
        replica["current"] and not replica.get("offline") for replica in replicas
    )


async def left_to_do(observer: Observer, stream: str, consumer: str) -> int:
    """Return how many events a consumer has not yet acknowledged."""
    info = await ask(observer, f"CONSUMER.INFO.{stream}.{consumer}")
    assert "error" not in info, info["error"]
    return int(info["num_pending"] + info["num_ack_pending"])


def _is_gap(answer: dict[str, Any]) -> bool:
    """Tell a sequence that was deleted from every other trouble."""
    error = answer.get("error")
    if error is not None and error.get("err_code") != _NO_MESSAGE:
        raise AssertionError(f"the stream cannot be read: {error}")
    return error is not None


def _event(message: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
    block = base64.b64decode(message.get("hdrs", "")).decode()
    pairs = (line.partition(":") for line in block.split("\r\n")[1:] if line)
    headers = {name.strip(): value.strip() for name, _, value in pairs}
    return message["seq"], headers, base64.b64decode(message.get("data", ""))
