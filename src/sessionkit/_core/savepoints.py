"""Which savepoints of a session were rolled back, and with them everything noted inside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from sqlalchemy import event
from sqlalchemy.engine import RootTransaction

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.engine import Connection, Transaction
    from sqlalchemy.orm import Session, SessionTransaction


class Savepoints:
    """The record for one session, kept from the moment it is made.

    It also follows savepoints that are open at that moment, because their rollback comes later.
    """

    __slots__ = ("_undone",)

    def __init__(self, session: Session) -> None:
        # Neither this nor the listener may hold the session, which holds the listener: it would live until a collection.
        undone: WeakSet[SessionTransaction] = WeakSet()
        self._undone = undone

        def on_rollback(_: Session, transaction: SessionTransaction) -> None:
            if transaction.nested:
                undone.add(transaction)

        event.listen(session, "after_soft_rollback", on_rollback)

    def survives(self, level: SessionTransaction | None) -> bool:
        """Return whether neither `level` nor a savepoint around it was rolled back, so what was noted there still holds."""
        return not any(enclosing in self._undone for enclosing in _outwards(level))


def within(level: SessionTransaction | None, savepoint: SessionTransaction) -> bool:
    """Return whether `level` is `savepoint` or inside it."""
    return any(enclosing is savepoint for enclosing in _outwards(level))


def _outwards(level: SessionTransaction | None) -> Iterable[SessionTransaction]:
    while level is not None:
        yield level
        level = level.parent


def core_transactions(transaction: SessionTransaction) -> list[tuple[Connection, Transaction]]:
    """Return the connections that a session's transaction has used so far, each with its own transaction."""
    held: dict[Any, tuple[Any, ...]] = transaction._connections
    return [(entry[0], entry[1]) for key, entry in held.items() if key is entry[0]]


def is_committed(transaction: SessionTransaction, connection: Connection) -> bool:
    """Return whether committing a session's transaction means COMMIT on a connection that it has used.

    On a user's own connection it may mean releasing a savepoint, or nothing.
    """
    held: dict[Any, tuple[Any, ...]] = transaction._connections
    _, core, commits, _ = held[connection]
    return commits and type(core) is RootTransaction


def commit_in_order(transaction: SessionTransaction) -> None:
    """COMMIT on each connection, in the order of their first use; SQLAlchemy keeps no order."""
    held: dict[Any, tuple[Any, ...]] = transaction._connections
    done: list[Connection] = []
    try:
        for connection, core in core_transactions(transaction):
            if held[connection][2]:  # the session must commit it
                core.commit()
                done.append(connection)
    except BaseException:
        for connection in done:  # what has committed takes no part in the rollback of the others
            autoclose = held.pop(connection)[3]
            del held[connection.engine]
            if autoclose:
                connection.close()
        raise
    settle(transaction)


def settle(transaction: SessionTransaction) -> None:
    """Make SQLAlchemy's session leave the transactions of its connections alone, because they have already ended."""
    held: dict[Any, tuple[Any, ...]] = transaction._connections
    for key, (connection, core, _, autoclose) in held.items():
        held[key] = (connection, core, False, autoclose)


def connections(transaction: SessionTransaction) -> list[Connection]:
    """Return the connections that a session's transaction, or one of its savepoints, has used so far.

    ``SessionTransaction.connections`` is public in SQLAlchemy 2.1.7 and later; before that there is only the private
    dictionary behind it.
    """
    held: dict[Any, tuple[Any, ...]] = transaction._connections
    if not held:
        return []
    return [entry[0] for key, entry in held.items() if key is entry[0]]
