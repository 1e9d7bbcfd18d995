"""Opens streams to the service of the fault tests, and logs what becomes of them.

Usage: caller.py LOG exchange STREAMS COUNT   COUNT numbered messages each way on each stream
       caller.py LOG send STREAMS PAUSE       sends for ever, a PAUSE after each message
       caller.py LOG take STREAMS PAUSE       takes what the node sends with a PAUSE, for ever

An exchange keeps its last message until SIGUSR1: however quick it is, it does not end before what
is to happen to it has happened.

Logs `open` when all streams are open, `at N` every thousand messages that came, and a line of JSON
for each exchange that ended.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import sys

from busmicro import CallError, Client
from busmicro.rpc.callstream import CallStream
from tests.faults.log import Log, now
from tests.faults.streams.chat import Ask, Reader, numbered

SAY_EVERY = 1000
OPEN_WITHIN = 30.0


class Caller:
    """Many streams of one kind."""

    def __init__(self, client: Client, log: Log, streams: int) -> None:
        self._client = client
        self._log = log
        self._streams = streams
        self._came = 0
        self._all_open = asyncio.Barrier(streams)
        self._may_end = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self._may_end.set)

    async def run(self, way: str, number: float) -> None:
        """Open the streams and use them until they end."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._streams):
                group.create_task(getattr(self, way)(number))

    async def _opened(self) -> None:
        """Wait until all streams are open."""
        if await self._all_open.wait() == 0:
            self._log.write("open")

    async def exchange(self, count: float) -> None:
        """Send and take numbered messages, and log the outcome."""
        began, reader, error, told = now(), Reader(), "", {}
        opening = self._client.stream(
            "chat", "Chat.exchange", sends=bytes, returns=bytes, headers={"Count": str(int(count))}
        )
        try:
            async with opening as stream, asyncio.TaskGroup() as group:
                await self._opened()
                group.create_task(self._send_all(stream, int(count)))
                group.create_task(self._take_all(stream, reader))
            told = dict(stream.reply_headers)
        except* CallError as failures:
            await self._all_open.abort()  # those who wait for this one would wait for ever
            error = repr(failures.exceptions[0])
        outcome = {
            "received": reader.received,
            "wrong": reader.wrong,
            "told": int(told.get("Received", "0")),
            "stall": max(reader.stall, float(told.get("Stall", "0"))),
            "error": error,
            "took": now() - began,
        }
        self._log.write(json.dumps(outcome))

    async def _send_all(self, stream: CallStream[bytes, bytes], count: int) -> None:
        for number in range(1, count + 1):
            if number == count:
                await self._may_end.wait()
            await stream.send(numbered(number))
        await stream.close_send()

    async def _take_all(self, stream: CallStream[bytes, bytes], reader: Reader) -> None:
        async for message in stream:
            reader.take(message)
            self._came += 1
            if self._came % SAY_EVERY == 0:
                self._log.write("at", self._came)

    async def send(self, pause: float) -> None:
        """Send for ever."""
        opening = self._client.stream("chat", "Chat.total", sends=bytes, returns=int)
        async with opening as stream:
            await self._opened()
            for number in itertools.count(1):
                await stream.send(numbered(number))
                if pause:
                    await asyncio.sleep(pause)

    async def take(self, pause: float) -> None:
        """Take for ever."""
        ask = Ask(to=1_000_000_000, pause=pause)
        async with self._client.stream("chat", "Chat.count", ask, returns=bytes) as stream:
            await anext(stream)
            await self._opened()
            async for _ in stream:
                pass


async def main(log: str, way: str, streams: str, number: str) -> None:
    async with Client(wait_for_ready=True, timeout=OPEN_WITHIN) as client:
        await Caller(client, Log(log), int(streams)).run(way, float(number))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
