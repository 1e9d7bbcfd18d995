"""Messages that are larger than one frame: cut into pieces, joined again, checked.

The last piece is an ordinary data frame whose header block has the CRC-32 of the whole.
"""

from __future__ import annotations

from typing import Final
from zlib import crc32

from busmicro.errors import DataLoss, ResourceExhausted
from busmicro.headers import CHECKSUM, VERSION_LINE, Headers
from busmicro.rpc.halves import Frame

_CHECKSUM: Final = CHECKSUM.lower().encode() + b":"


def checksum_line(crc: int) -> bytes:
    """Write the CRC-32 of a message as the line of a header block."""
    return b"%b: %08x\r\n" % (CHECKSUM.encode(), crc)


def header_block(lines: bytes) -> bytes:
    """Make a header block of these lines; empty if there are none."""
    return VERSION_LINE + lines + b"\r\n" if lines else b""


def without_checksum(header: bytes) -> bytes:
    """Return a header block without the line that is not the application's."""
    lines = header.split(b"\r\n")[1:-2]
    rest = [line for line in lines if not line.lower().startswith(_CHECKSUM)]
    return header_block(b"".join(line + b"\r\n" for line in rest))


def too_large(most_bytes: int) -> ResourceExhausted:
    """Say that a message is larger than this process takes."""
    return ResourceExhausted(
        f"a message of more than {most_bytes:,} bytes; send it as several, "
        "or raise BUSMICRO_MAX_MESSAGE_BYTES where it is received"
    )


class Join:
    """The pieces of one message, in order."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes: Final = most_bytes
        self._pieces: list[bytes] = []
        self._size_bytes = 0
        self._crc = 0

    def add(self, frame: Frame) -> None:
        """Take a piece.

        Raises:
            ResourceExhausted: The message is larger than this process takes.
        """
        piece = frame[2]
        self._size_bytes += len(piece)
        if self._size_bytes > self._most_bytes:
            raise too_large(self._most_bytes)
        self._crc = crc32(piece, self._crc)
        self._pieces.append(piece)

    def finish(self, frame: Frame) -> Frame:
        """Take the last piece and return the whole; the checksum is not among its headers.

        Raises:
            ResourceExhausted: As with `add`.
            DataLoss: The checksum is missing or differs.
        """
        self.add(frame)
        kind, header, _piece = frame
        said = Headers(header).get(CHECKSUM, "")
        if said != f"{self._crc:08x}":
            raise DataLoss(
                f"a message of {self._size_bytes:,} bytes in {len(self._pieces)} pieces "
                f"has checksum {self._crc:08x}, not {said or 'none'}"
            )
        return kind, without_checksum(header), b"".join(self._pieces)
