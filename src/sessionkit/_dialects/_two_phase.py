"""The shape of the table entry for two-phase commit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from sqlalchemy import Executable
    from sqlalchemy.engine import Connection


class Pending(NamedTuple):
    """A transaction that is prepared and has not ended: its name, and its age in seconds."""

    gid: str
    age: float


@dataclass(frozen=True, slots=True)
class TwoPhase:
    """How a dialect prepares a transaction and ends it later, from any connection.

    Attributes:
        refusal: returns why a connection's server or driver cannot do it; None if it can. Takes no snapshot.
        identity: names the database: the same through every engine, and different from every other database.
        prepare: the statement that prepares the open transaction. For an aborted one it is a silent ROLLBACK.
        end: the statement that commits (True) or rolls back a prepared transaction. The server refuses it inside a
            transaction.
        outside: a context in which a connection whose transaction was just prepared sends `end` outside of a
            transaction, although its driver believes that one is open.
        gone: returns whether an error says that no transaction of that name is prepared.
        busy: returns whether an error says that somebody else is working on it or on the unit's marker right now.
        pending: the prepared transactions of this database, oldest first, no matter who prepared them.
    """

    refusal: Callable[[Connection], str | None]
    identity: Callable[[Connection], str]
    prepare: Callable[[str], Executable]
    end: Callable[[str, bool], Executable]
    outside: Callable[[Connection], AbstractContextManager[None]]
    gone: Callable[[BaseException], bool]
    busy: Callable[[BaseException], bool]
    pending: Callable[[Connection], list[Pending]]
