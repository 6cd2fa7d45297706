"""The commit marker: how to find out whether a COMMIT took effect when its answer was lost.

A unit with ``verify_commit=True`` writes a row with a key of its own just before its COMMIT, or in the same message: the
row is there if and only if the unit was committed. After a lost answer a SELECT cannot tell, because the COMMIT may
still be on its way. So a new connection *claims* the key: ``INSERT ... ON CONFLICT DO NOTHING`` waits for a transaction
that holds the key and is still open, and the row then says which of the two got it. If the claim did, the old
transaction can never commit any more, since its own row would be a duplicate. If its row and its COMMIT are both still
on their way, the server refuses the row and never reaches the COMMIT behind it.
"""

from __future__ import annotations

from datetime import timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

from sqlalchemy import CHAR, Column, DateTime, MetaData, String, Table, delete, func, insert, inspect, select
from sqlalchemy.exc import DBAPIError

from . import _dialects
from ._schemas import own_schemas

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.engine import Connection

TABLE_NAME = "sessionkit_commit"

Verdict = Literal["committed", "rolled back"]


def table(metadata: MetaData | None = None, *, schema: str | None = None) -> Table:
    """Return the marker table as part of `metadata`, for instance for Alembic's autogenerate."""
    return Table(
        TABLE_NAME,
        MetaData() if metadata is None else metadata,
        Column("key", CHAR(32), primary_key=True),
        Column("state", String(1), nullable=False, comment="C: committed; T: claimed, so never committed"),
        Column(
            "created_at", DateTime(timezone=True), nullable=False, server_default=func.current_timestamp(), index=True
        ),
        schema=schema,
    )


TABLE = table()
_insert = insert(TABLE)  # made once: building it costs as much as sending it


def prune(connection: Connection, older_than: float) -> int:
    """Delete the markers of this age, in seconds; return how many. SQL: ``DELETE FROM sessionkit_commit``."""
    now: Any = connection.scalar(select(func.current_timestamp(type_=TABLE.c.created_at.type)))
    return connection.execute(delete(TABLE).where(TABLE.c.created_at < now - timedelta(seconds=older_than))).rowcount


def new_key() -> str:
    """Return a key that no other unit has."""
    return uuid4().hex


def mark(connection: Connection, key: str, options: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Write the marker into the unit's own transaction. SQL: ``INSERT INTO sessionkit_commit``.

    `options` may delay it until COMMIT; then COMMIT raises what the server has to say about it.
    """
    try:
        connection.execute(
            _insert, {"key": key, "state": "C"}, execution_options={**own_schemas(connection), **options}
        )
    except DBAPIError as error:
        explain(error)
        raise


def is_there(connection: Connection) -> bool:
    """Return whether the marker table is in the connection's database. SQL: a look into the catalogue."""
    schemas: Mapping[Any, Any] = connection.get_execution_options().get("schema_translate_map") or {}
    return inspect(connection).has_table(TABLE_NAME, schema=schemas.get(None))


def explain(error: DBAPIError) -> None:
    """Note on an error that it came from the marker."""
    error.add_note(
        "this was the commit marker of verify_commit=True or twophase=True; create its table with "
        "sessionkit.commits.create_table(engine)"
    )


def claim(connection: Connection, key: str) -> Verdict:
    """Find out how the unit with the marker `key` ended, and make sure that this stays so.

    Args:
        connection: a new connection to the unit's database. The caller commits it; only then is the answer final.
        key: the marker's key, such as ``CommitOutcomeUnknown.key``.

    Returns:
        ``"committed"`` or ``"rolled back"``.

    Waits for the unit's transaction if it is still open; bound that with ``lock_timeout``.
    SQL: ``INSERT INTO sessionkit_commit ... ON CONFLICT DO NOTHING``, ``SELECT state``.
    """
    connection.execute(_dialects.of(connection).insert_or_wait(TABLE).values(key=key, state="T"))
    state = connection.scalar(select(TABLE.c.state).where(TABLE.c.key == key))
    return "committed" if state == "C" else "rolled back"
