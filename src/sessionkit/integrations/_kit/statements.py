"""The statements that a block sends."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import event

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from sqlalchemy.engine import Connection, Engine

__all__ = ["Statements", "collect"]

# Statements that control a transaction, and those that the kit itself sends instead of a COMMIT.
_NOT_COUNTED = re.compile(
    r"\s*(?:SAVEPOINT|RELEASE|ROLLBACK|SET TRANSACTION|SELECT set_config\(|DO \$\$ BEGIN SET CONSTRAINTS ALL IMMEDIATE; RAISE|"
    r"PREPARE TRANSACTION|COMMIT PREPARED)",
    re.IGNORECASE,
)


class Statements(list[str]):
    """The statements, in the order in which they were sent."""

    def __str__(self) -> str:
        return "\n".join(f"{number}. {statement}" for number, statement in enumerate(self, 1)) or "none"


@contextmanager
def collect(engines: Iterable[Engine]) -> Generator[Statements, None, None]:
    """Collect the statements sent through `engines` and the engines derived from them."""
    sent = Statements()

    def listener(_connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        if not _NOT_COUNTED.match(statement):
            sent.append(statement)

    engines = list(engines)
    for engine in engines:
        event.listen(engine, "before_cursor_execute", listener)
    try:
        yield sent
    finally:
        for engine in engines:
            event.remove(engine, "before_cursor_execute", listener)
