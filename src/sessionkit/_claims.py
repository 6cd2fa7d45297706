"""The table of ``once=``: a row for each key, claimed in the unit's own transaction before its body.

The second caller waits for the transaction of the first, and then finds the row with the result. If the first was rolled
back, there is no row, and the second caller claims the key. So the row exists if and only if the unit was committed: it also
answers how a COMMIT without an answer has ended, and the unit needs no marker (see `commits`).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

from sqlalchemy import (
    Column,
    DateTime,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    bindparam,
    delete,
    func,
    inspect,
    select,
    update,
)

from . import _dialects
from ._schemas import own_schemas
from .errors import OptionError, classify

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.engine import Connection
    from sqlalchemy.exc import DBAPIError

    from ._dialects import OnceKeys

TABLE_NAME = "sessionkit_once"

UNIT, REQUEST, MESSAGE = "U", "R", "M"
"""The kinds of keys. Each has names of its own."""

PENDING, DONE = "P", "D"
"""The states of a row without a result: its unit still runs, or it has no result."""


def once_table(metadata: MetaData | None = None, *, schema: str | None = None) -> Table:
    """Return the table of the keys of ``once=``, as a part of `metadata`, for instance for Alembic's autogenerate."""
    return Table(
        TABLE_NAME,
        MetaData() if metadata is None else metadata,
        Column("key", String(200), primary_key=True),
        Column("kind", String(1), primary_key=True, comment="U: of a unit, R: of a request, M: of a message"),
        Column("claim", String(32), nullable=False, comment="which run of the unit has written this row"),
        Column("fingerprint", Text, nullable=False),
        Column("state", String(1), nullable=False, comment="T: text, B: bytes, D: done, no result; P: not done yet"),
        Column("result", LargeBinary),
        Column("created_at", DateTime(timezone=True), nullable=False, server_default=func.current_timestamp()),
        Column("expires_at", DateTime(timezone=True), nullable=False, index=True),
        schema=schema,
    )


TABLE = once_table()


def _of(column: str) -> Any:
    return bindparam(f"of_{column}", type_=TABLE.c[column].type)


_key_is = (TABLE.c.key == _of("key"), TABLE.c.kind == _of("kind"))
# Made once: to build it costs as much as to send it.
_keep = update(TABLE).where(*_key_is, TABLE.c.claim == _of("claim")).values(state=bindparam("s"), result=bindparam("r"))
_owner = select(TABLE.c.claim).where(*_key_is)


class Name(NamedTuple):
    """Which row: a key, and of which kind."""

    key: str
    kind: str = UNIT

    @property
    def _values(self) -> dict[str, str]:
        return {"of_key": self.key, "of_kind": self.kind}


class Found(NamedTuple):
    """The row of a key after it was claimed.

    Attributes:
        claim: which run of a unit has written it.
        mine: it was this one.
        fingerprint: of the arguments with which the key was first used.
        state: how the result is stored.
        result: the bytes of it.
    """

    claim: str
    mine: bool
    fingerprint: str
    state: str
    result: bytes | None


@cache
def _statements(keys: OnceKeys) -> tuple[Any, Any]:
    return keys.claim(TABLE), keys.renew(TABLE)


def keys_of(connection: Connection) -> OnceKeys:
    """Return how keys are claimed on a connection's database.

    Raises:
        OptionError: sessionkit has no way to do that there.
    """
    keys = _dialects.of(connection).once
    if keys is None:
        raise OptionError(
            f"once= or consumed() was asked for, but it has no keys on {connection.dialect.name}; leave it out there"
        )
    return keys


def claim(connection: Connection, name: Name, fingerprint: str, ttl: float, state: str = PENDING) -> Found:
    """Claim a key for the transaction of a connection, or find out who has it.

    Args:
        connection: in the transaction.
        name: the key.
        fingerprint: of the arguments.
        ttl: how long the row is kept, in seconds.
        state: of the new row.

    Waits for a transaction that has the key and is still open.
    SQL: ``WITH ... INSERT INTO sessionkit_once ... ON CONFLICT DO NOTHING ... SELECT``; once more after a wait.
    """
    claims, renews = _statements(keys_of(connection))
    mine, options = uuid4().hex, own_schemas(connection)
    values = {
        "new_key": name.key,
        "new_kind": name.kind,
        "new_claim": mine,
        "new_fingerprint": fingerprint,
        "new_state": state,
        "ttl": ttl,
    }
    while True:
        row: Any = connection.execute(claims, values, execution_options=options).first()
        if row is None:
            continue  # committed during the wait
        if row.over:
            if connection.execute(renews, {**values, "old": row.claim}, execution_options=options).rowcount != 1:
                continue
            return Found(mine, True, fingerprint, state, None)
        return Found(row.claim, row.claim == mine, row.fingerprint, row.state, row.result)


def keep(
    connection: Connection, name: Name, mine: str, state: str, result: bytes | None, options: Mapping[str, Any]
) -> bool:
    """Store the result of the unit that has claimed a key; return whether its row is there.

    `options` may have it sent later, with COMMIT. SQL: ``UPDATE sessionkit_once``.
    """
    values = {**name._values, "of_claim": mine, "s": state, "r": result}
    done = connection.execute(_keep, values, execution_options={**own_schemas(connection), **options})
    return done.rowcount == 1


def has_committed(connection: Connection, name: Name, mine: str) -> bool:
    """Find out whether the run of a unit that had claimed a key was committed; the caller rolls back.

    Its row was written before its COMMIT was sent, so that nothing of it can come later than the answer to this.
    Waits for the unit's transaction if it is still open; bound that with ``lock_timeout``.
    SQL: ``INSERT INTO sessionkit_once ... ON CONFLICT DO NOTHING``, ``SELECT claim``.
    """
    options = own_schemas(connection)
    probe = {"key": name.key, "kind": name.kind, "claim": "", "fingerprint": "", "state": PENDING}
    new = _dialects.of(connection).insert_or_wait(TABLE).values(**probe, expires_at=func.current_timestamp())
    connection.execute(new, execution_options=options)
    return bool(connection.scalar(_owner, name._values, execution_options=options) == mine)


def is_there(connection: Connection) -> bool:
    """Return whether the table is in the connection's database. SQL: a look into the catalogue."""
    schemas: Mapping[Any, Any] = own_schemas(connection)["schema_translate_map"] or {}
    return inspect(connection).has_table(TABLE_NAME, schema=schemas.get(None))


def refuse_missing(connection: Connection, error: DBAPIError, asked: str) -> None:
    """Say of the error of a claim that the table is not there, if that is so. On PostgreSQL it sends nothing.

    Raises:
        OptionError: it is not.
    """
    gone = classify(error).code == _UNDEFINED_TABLE
    if gone or not (_dialects.of(connection).aborts or is_there(connection)):
        raise OptionError(
            f"{asked}, but {connection.engine!r} has no table {TABLE_NAME} for the keys; make it with "
            "sessionkit.commits.create_table(engine), or in a migration"
        ) from error


_UNDEFINED_TABLE = "42P01"


def prune(connection: Connection) -> int:
    """Delete the rows that are over their time; return how many. SQL: ``DELETE FROM sessionkit_once``."""
    keys = _dialects.of(connection).once
    return 0 if keys is None else connection.execute(delete(TABLE).where(keys.over(TABLE))).rowcount
