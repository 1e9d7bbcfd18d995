"""Disks of a server's own: one whose power can be cut, and one that gets full.

Both are real file systems.  What a machine does not allow is said as `NotHere`, with the reason.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from busmicro.embedded import find_nats_server

_MIB = 2**20
_MOST_COPIES = 100
_COMMIT_EVERY = 600
"""Seconds after which the file system syncs by itself: later than any test, or chance had a say."""


class NotHere(Exception):
    """This machine, or this user, cannot have such a disk."""


def server_config(folder: Path, *, sync_always: bool = False) -> Path:
    """Write a configuration that lets streams be larger than these small disks."""
    sync = "sync_interval: always, " if sync_always else ""
    file = folder / "nats-server.conf"
    file.write_text(f"jetstream {{ {sync}max_file_store: 100GB }}\n", "utf-8")
    return file


class FragileDisk:
    """An ext4 in a file, mounted, for `with`: a cut of its power takes what was not synced.

    What the file holds is what had reached the disk; the rest was in the kernel's memory.  So the
    disk after a power cut is a copy of the file, mounted in its place.

    Args:
        folder: Where the file and the mount point are made.
        size_bytes: How much the file system holds.
    """

    def __init__(self, folder: Path, *, size_bytes: int = 384 * _MIB) -> None:
        self._image = folder / "disk.ext4"
        self._copy = folder / "disk-after-the-cut.ext4"
        self._size_bytes = size_bytes
        self.path = folder / "disk"
        """Where it is mounted."""
        self._mounted = False

    def __enter__(self) -> Self:
        self.path.mkdir()
        with self._image.open("wb") as image:
            image.truncate(self._size_bytes)
        _run("mkfs.ext4", "-q", "-F", str(self._image))
        self._mount()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._unmount()
        self._image.unlink()
        self._copy.unlink(missing_ok=True)

    def sync(self) -> None:
        """Let everything reach the disk that was written until now."""
        _run("sync", "-f", str(self.path))

    def see(self) -> None:
        """Remember what has reached the disk by now: a cut leaves this. Nobody may be writing."""
        for _ in range(_MOST_COPIES):
            before = self._image.stat().st_mtime_ns
            _run("cp", "--sparse=always", str(self._image), str(self._copy))
            if self._image.stat().st_mtime_ns == before:  # the kernel writes when it likes
                return
        raise AssertionError(f"{self._image} never holds still")

    def cut(self) -> None:
        """Take everything back that had not reached the disk when `see` was called."""
        self._unmount()
        self._copy.replace(self._image)
        self._mount()

    def _mount(self) -> None:
        options = f"loop,commit={_COMMIT_EVERY}"
        _run("mount", "-o", options, str(self._image), str(self.path))
        self._mounted = True

    def _unmount(self) -> None:
        if self._mounted:
            _run("umount", str(self.path))
            self._mounted = False


class SmallDisk:
    """A disk in memory that gets full, with a server that sees it, for `with`; root or not.

    Args:
        folder: Where its mount point is made.
        size_bytes: How much it holds.
    """

    def __init__(self, folder: Path, *, size_bytes: int = 32 * _MIB) -> None:
        self._folder = folder
        self._size_bytes = size_bytes
        self.path = folder / "small"
        """Where the server finds it; nobody else does."""
        self.server = folder / "nats-server-on-small-disk"
        """A program to start in place of nats-server."""
        self._holder: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.path.mkdir()
        mount = f'mount -t tmpfs -o size={self._size_bytes} tmpfs "$0" && echo mounted && cat'
        self._holder = _start("unshare", "-Urm", "/bin/sh", "-c", mount, str(self.path))
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"mounted\n":
            words = self._end()
            raise NotHere(f"no mount namespace: {words or 'unshare failed'}")
        inside = f"nsenter --preserve-credentials -U -m -t {self._holder.pid}"
        self.server.write_text(f'#!/bin/sh\nexec {inside} "{find_nats_server()}" "$@"\n', "utf-8")
        self.server.chmod(0o755)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._end()

    def fill(self) -> None:
        """Leave no byte of it free."""
        with self._ballast.open("wb", buffering=0) as ballast:
            block = bytes(_MIB)
            while block:
                try:
                    ballast.write(block)
                except OSError:
                    block = block[: len(block) // 2]

    def make_room(self) -> None:
        """Give back what `fill` took."""
        self._ballast.unlink()

    @property
    def _ballast(self) -> Path:
        assert self._holder is not None
        return Path(f"/proc/{self._holder.pid}/root{self.path}/ballast")

    def _end(self) -> str:
        assert self._holder is not None
        _out, words = self._holder.communicate()
        return words.decode("utf-8", "replace").strip()


def _start(program: str, *args: str) -> subprocess.Popen[bytes]:
    if shutil.which(program) is None:
        raise NotHere(f"there is no {program}")
    return subprocess.Popen(
        [program, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def _run(program: str, *args: str) -> None:
    """Run a program of the system to its end.

    Raises:
        NotHere: It is not there, or may not do that.
    """
    if shutil.which(program) is None:
        raise NotHere(f"there is no {program}")
    done = subprocess.run([program, *args], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotHere(f"{program}: {done.stderr.strip() or done.returncode}")
