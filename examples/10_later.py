"""Events for later and events that recur: the server keeps the time, no process has to wake up."""

import asyncio
import time
from datetime import UTC, datetime, timedelta

from busmicro import NatsServer, Service, Stream, Topic

reminders = Topic("reminders", str, stream=Stream("REMINDERS"))
ticks = Topic("ticks", str, stream=Stream("TICKS"))
service = Service("clock")
heard: asyncio.Queue[str] = asyncio.Queue()


@service.subscribe(reminders, group="people")
async def on_reminder(text: str) -> None:
    await heard.put(text)


@service.subscribe(ticks, group="people")
async def on_tick(text: str) -> None:
    await heard.put(text)


service.cron("* * * * * *", ticks, "tick")  # seconds first: every second, on one node


async def main() -> None:
    async with NatsServer() as server:
        await service.start(url=server.url)
        began = time.monotonic()
        await service.publish(reminders, "tea", after=0.5)
        await service.publish(reminders, "bed", at=datetime.now(UTC) + timedelta(seconds=1.2))
        texts: set[str] = set()
        while len(texts) < 3:
            texts.add(await heard.get())
        print(sorted(texts))
        print(f"took more than a second: {time.monotonic() - began > 1}")
        await service.stop()


if __name__ == "__main__":
    asyncio.run(main())
