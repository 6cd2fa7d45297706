"""What a two-phase commit needs of a dialect: the shape of the table entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from sqlalchemy import Executable
    from sqlalchemy.engine import Connection


class Pending(NamedTuple):
    """A transaction that is prepared and not ended: its name, and for how many seconds."""

    gid: str
    age: float


@dataclass(frozen=True, slots=True)
class TwoPhase:
    """How a dialect prepares a transaction and ends it later, from any connection.

    Attributes:
        refusal: tells why a connection's server or driver cannot; None where it can. No snapshot is taken.
        identity: names the database, the same through every engine and different from every other database.
        prepare: the statement that prepares the transaction that runs. Of an aborted one it is a silent ROLLBACK.
        end: the statement that commits (True) or rolls back a prepared transaction. It is refused inside a transaction.
        outside: a context in which a connection whose transaction was just prepared sends `end` outside of one,
            although its driver believes that it runs on.
        gone: tells whether an error says that no transaction of that name is prepared.
        busy: tells whether an error says that somebody else is at work on it or on the unit's marker at this moment.
        pending: the transactions of this database that are prepared, oldest first, whoever prepared them.
    """

    refusal: Callable[[Connection], str | None]
    identity: Callable[[Connection], str]
    prepare: Callable[[str], Executable]
    end: Callable[[str, bool], Executable]
    outside: Callable[[Connection], AbstractContextManager[None]]
    gone: Callable[[BaseException], bool]
    busy: Callable[[BaseException], bool]
    pending: Callable[[Connection], list[Pending]]
