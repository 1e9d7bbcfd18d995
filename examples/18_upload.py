"""Send a file as a stream of bytes, get its digest, read it back: never all of it in memory."""

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory

from busmicro import Client, NatsServer, NotFound, Service


async def chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(256 * 1024):
            yield chunk


class Files:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def upload(self, content: AsyncIterator[bytes]) -> str:
        """Keep a file under its digest; one that is broken off stays a draft."""
        digest, draft = hashlib.sha256(), self._folder / f"draft-{secrets.token_hex(4)}"
        with draft.open("wb") as file:
            async for chunk in content:
                digest.update(chunk)
                file.write(chunk)
        return draft.rename(self._folder / digest.hexdigest()).name

    async def download(self, digest: str) -> AsyncIterator[bytes]:
        if not (digest.isalnum() and (path := self._folder / digest).is_file()):
            raise NotFound(f"no file {digest}")
        async for chunk in chunks(path):
            yield chunk


async def main(folder: Path) -> None:
    async with NatsServer() as server, Client(server.url) as client:
        service = Service("files", url=server.url)
        service.handle(Files(folder))
        async with service:
            files, film = client.stub(Files, service="files"), folder / "film"
            film.write_bytes(bytes(range(256)) * 100_000)
            print(digest := await files.upload(chunks(film)))
            print(sum([len(chunk) async for chunk in files.download(digest)]))


if __name__ == "__main__":
    with TemporaryDirectory() as temporary:
        asyncio.run(main(Path(temporary)))
