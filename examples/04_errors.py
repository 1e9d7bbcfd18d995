"""A handler raises; the caller catches the same class, with the same content."""

import asyncio

from busmicro import Client, InvalidArgument, NatsServer, NotFound, Service

service = Service("users")


@service.rpc
async def find(name: str) -> str:
    """Find a user."""
    raise NotFound(f"no user {name}", details=[{"searched": "users"}])


async def main() -> None:
    async with NatsServer() as server:
        await service.start(url=server.url)
        async with Client(server.url) as client:
            try:
                await client.call("users", "find", "bob")
            except NotFound as error:
                print(f"{error.message} {error.details} from {error.origin}")
            try:
                await client.call("users", "find", 42)
            except InvalidArgument as error:
                print(error.message)
        await service.stop()


if __name__ == "__main__":
    asyncio.run(main())
