"""What must not happen: everything that is logged as an error is one."""

from __future__ import annotations

import logging


class WrongError(Exception):
    """Something was not as it is promised."""


def require(held: object, what: str, *seen: object) -> None:
    """Raise if something does not hold."""
    if not held:
        raise WrongError(": ".join([what, *map(repr, seen)]))


class Complaints(logging.Handler):
    """Keeps what is logged as an error; what users' functions raise must not be among it."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []
        self._write = logging.Formatter("%(name)s: %(message)s")

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(self._write.format(record))

    def require_none(self, *but: str) -> None:
        """Raise if there are any; forget them."""
        found, self.found = self.found, []
        for text in found:
            require(text.startswith(but) if but else False, "this was logged", text)


def listen_for_complaints() -> Complaints:
    """Keep the errors of all of busmicro from now on, and write no log."""
    complaints, log = Complaints(), logging.getLogger("busmicro")
    log.addHandler(complaints)
    log.propagate = False
    logging.getLogger("asyncio").addHandler(complaints)
    logging.getLogger("asyncio").propagate = False
    return complaints
