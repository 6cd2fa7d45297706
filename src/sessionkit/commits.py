"""The commit marker: how to find out whether a COMMIT took effect when its answer was lost.

A unit with ``verify_commit=True`` writes a row with a key of its own just before its COMMIT, or in the same message: the
row is there if and only if the unit was committed. After a lost answer a SELECT cannot tell, because the COMMIT may
still be on its way. So a new connection *claims* the key: ``INSERT ... ON CONFLICT DO NOTHING`` waits for a transaction
that holds the key and is still open, and the row then says which of the two got it. If the claim did, the old
transaction can never commit any more, since its own row would be a duplicate. If its row and its COMMIT are both still
on their way, the server refuses the row and never reaches the COMMIT behind it.

With a key of the application's a unit happens once: ``once=`` has a table of its own, where each key is claimed before
the body, and the result is stored with it; see `session_scope`. `consumed` does the same for messages, without a result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from . import _claims, _dialects, _markers
from ._binds import primary_of
from ._claims import once_table
from ._core.session import unit_of
from ._markers import claim, table
from ._once import WEEK, check_key, check_ttl
from .context import current_of, sync_session_of
from .errors import NotLocked, OptionError, ScopeError, SyncAsyncMismatch, classify

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_scoped_session
    from sqlalchemy.orm import scoped_session

__all__ = [
    "async_consumed",
    "async_create_table",
    "async_prune",
    "claim",
    "consumed",
    "create_table",
    "once_table",
    "prune",
    "table",
]

# -- the tables -----------------------------------------------------------------------------------------------------


def create_table(engine: Engine) -> None:
    """Create the tables of ``verify_commit=True`` and ``once=``, those that are not there.

    SQL: ``CREATE TABLE IF NOT EXISTS``-like: a look into the catalogue, ``CREATE TABLE``, ``CREATE INDEX`` for
    ``sessionkit_commit`` and ``sessionkit_once``; in a transaction of their own.
    """
    with engine.begin() as connection:
        _create(connection)


async def async_create_table(engine: AsyncEngine) -> None:
    """Create the tables of ``verify_commit=True`` and ``once=``. The async twin of `create_table`."""
    async with engine.begin() as connection:
        await connection.run_sync(_create)


def _create(connection: Connection) -> None:
    for each in (_markers.TABLE, _claims.TABLE):
        each.create(connection, checkfirst=True)


def prune(engine: Engine, *, older_than: float = 86_400.0) -> int:
    """Delete the markers and keys that no unit asks for any more.

    Args:
        engine: an engine of the database with the tables.
        older_than: delete markers of at least this age, in seconds. It must be longer than it may take to resolve a
            unit, and than a COMMIT may be on its way, since a claim that is gone no longer stops it. It must also be
            longer than a two-phase commit may stay prepared: without its marker it is rolled back. The keys of ``once=``
            and `consumed` have a time of their own, and go when it is over.

    Returns:
        The number of rows deleted, of both tables.

    SQL: ``DELETE FROM sessionkit_commit WHERE created_at < ...`` and ``DELETE FROM sessionkit_once WHERE expires_at <=
    ...``, of the tables that are there; in a transaction of their own, by the server's clock.
    """
    _check_age(older_than)
    with engine.begin() as connection:
        return _prune(connection, older_than)


async def async_prune(engine: AsyncEngine, *, older_than: float = 86_400.0) -> int:
    """Delete the markers and keys that no unit asks for any more. The async twin of `prune`."""
    _check_age(older_than)
    async with engine.begin() as connection:
        return await connection.run_sync(_prune, older_than)


def _check_age(older_than: float) -> None:
    if isinstance(older_than, bool) or not older_than >= 0:
        raise OptionError(f"older_than={older_than!r} was given; it is a number of seconds, 0 or more")


def _prune(connection: Connection, older_than: float) -> int:
    keys = _claims.prune(connection) if _claims.is_there(connection) else 0
    if keys and not _markers.is_there(connection):
        return keys
    return keys + _markers.prune(connection, older_than)


# -- messages -------------------------------------------------------------------------------------------------------


def consumed(session: Session | scoped_session[Any], key: str, *, ttl: float = WEEK) -> bool:
    """Note in the session's transaction that a message is handled; tell whether it was not handled before.

    ``if not commits.consumed(session, message.id): return`` is the first line of a handler whose queue may deliver a
    message twice. The note is committed and rolled back with the work of the handler. If another transaction has noted
    the same key and is still open, this waits for its end.

    Args:
        session: any session; the note belongs to its current transaction and to its current savepoint.
        key: of the message: 1 to 200 characters. Keys of ``once=`` are others.
        ttl: how long the note is kept, in seconds; default: 7 days. Afterwards the message would be handled again.

    Returns:
        True: the message is yours. False: it was handled before.

    Raises:
        OptionError: the key or the time is not valid, or there is no table for the keys; see `create_table`.
        ScopeError: the scope is read-only, or the engine runs in AUTOCOMMIT.
        NotLocked: the other transaction has not ended within ``lock_timeout``. On SQLite it is the driver's BUSY.

    Above READ COMMITTED a key that was noted during the wait ends in a serialization failure, which a retry resolves.
    SQL: ``WITH ... INSERT INTO sessionkit_once ... ON CONFLICT DO NOTHING ... SELECT``.
    """
    name = _claims.Name(check_key(key, "commits.consumed()"), _claims.MESSAGE)
    seconds = check_ttl(ttl, f"ttl={ttl!r} was given to commits.consumed()")
    current = current_of(session)
    if not isinstance(current, Session) and hasattr(current, "sync_session"):
        raise SyncAsyncMismatch(
            f"commits.consumed() was given {current!r}, which is async; await commits.async_consumed()"
        )
    return _consumed(sync_session_of(current, "commits.consumed()"), name, seconds)


async def async_consumed(session: AsyncSession | async_scoped_session[Any], key: str, *, ttl: float = WEEK) -> bool:
    """Do as `consumed`, on an ``AsyncSession``."""
    current: Any = current_of(session)
    if not hasattr(current, "run_sync"):
        raise SyncAsyncMismatch(
            f"commits.async_consumed() was given {session!r}, which is no AsyncSession; call commits.consumed()"
        )
    mine: bool = await current.run_sync(consumed, key, ttl=ttl)
    return mine


def _consumed(session: Session, name: _claims.Name, ttl: float) -> bool:
    unit = unit_of(session)
    if unit is not None and unit.read_only:
        raise ScopeError(f"commits.consumed() was called in {unit}, which is read-only; call it in a scope that writes")
    connection = session.connection(bind_arguments={"bind": primary_of(session) or session.get_bind()})
    if _dialects.is_autocommit(connection):
        raise ScopeError(
            f"commits.consumed() was called on {connection.engine!r}, which runs in AUTOCOMMIT: the note would be kept "
            "though the work fails; use an engine with transactions"
        )
    try:
        return _claims.claim(connection, name, "", ttl, _claims.DONE).mine
    except DBAPIError as error:
        if classify(error).kind == "lock_not_available":
            raise NotLocked.of(
                error,
                f"commits.consumed() waited for another transaction with the key {name.key!r}, which has not ended in time",
            ) from error
        _claims.refuse_missing(connection, error, "commits.consumed() was called")
        raise
