"""The shape of the table entry about keys that belong to one unit, and what its statements share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, func, null, update

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import ColumnElement, Executable, Table


@dataclass(frozen=True, slots=True)
class OnceKeys:
    """How a row of the table of ``once=`` is claimed.

    The parameters are new_key, new_kind, new_claim, new_fingerprint, new_state, and ttl in seconds.

    Attributes:
        claim: a statement that inserts the row, or finds the one that is there, and waits for a transaction that has
            inserted it and is still open. It returns claim, fingerprint, state, result and whether the row is over its
            time, of the row that is there afterwards; no row where that was committed during the wait, so that only
            the next statement sees it.
        renew: a statement that makes a row that is over its time a new one; `old` is the claim that it has.
        over: the condition that a row is over its time, by the server's clock.
        writes: `claim` writes where it finds a row too, so that a rollback costs less than a COMMIT.
    """

    claim: Callable[[Table], Executable]
    renew: Callable[[Table], Executable]
    over: Callable[[Table], ColumnElement[bool]]
    writes: bool = False


def parameters(table: Table, *names: str) -> dict[str, Any]:
    """Return the parameters of the statements, by their columns."""
    names = names or ("key", "kind", "claim", "fingerprint", "state")
    return {name: bindparam(f"new_{name}", type_=table.c[name].type) for name in names}


def is_row(table: Table) -> list[ColumnElement[bool]]:
    """Return the conditions of the row of a key."""
    return [table.c[name] == value for name, value in parameters(table, "key", "kind").items()]


def renewal(table: Table, expires: Any) -> Executable:
    """Return the statement that makes a row a new one, where `expires` is SQL for the end of its time."""
    old = bindparam("old", type_=table.c.claim.type)
    new = {"result": null(), "created_at": func.current_timestamp(), "expires_at": expires}
    return (
        update(table)
        .where(*is_row(table), table.c.claim == old)
        .values({**parameters(table, "claim", "fingerprint", "state"), **new})
    )
