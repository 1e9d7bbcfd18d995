"""Messages that are larger than one frame: cut into pieces, joined again, checked.

The last piece is an ordinary data frame whose header block has the CRC-32 of the whole.
"""

from __future__ import annotations

from typing import Final
from zlib import crc32

from busmicro.errors import DataLoss, ResourceExhausted
from busmicro.headers import CHECKSUM, VERSION_LINE, Headers
from busmicro.rpc.halves import Frame


def checksum_line(payload: bytes) -> bytes:
    """Write the checksum of a message as the line of a header block."""
    return b"%b: %08x\r\n" % (CHECKSUM.encode(), crc32(payload))


def header_block(lines: bytes) -> bytes:
    """Make a header block of these lines; empty if there are none."""
    return VERSION_LINE + lines + b"\r\n" if lines else b""


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
            raise ResourceExhausted(
                f"a message of more than {self._most_bytes:,} bytes; send it as several, "
                "or raise BUSMICRO_MAX_MESSAGE_BYTES where it is received"
            )
        self._crc = crc32(piece, self._crc)
        self._pieces.append(piece)

    def finish(self, frame: Frame) -> Frame:
        """Take the last piece and return the whole.

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
        return kind, header, b"".join(self._pieces)
