"""Shows the scope's name in PostgreSQL as ``application_name``.

::

    from sessionkit.integrations.application_name import name_transactions

    name_transactions(engine)

``pg_stat_activity``, the server's log and its views of locks then show which scope a transaction belongs to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import event, orm

from .._spi import _dialects, root_of
from ..errors import OptionError
from ._senders import root_engine

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

__all__ = ["name_transactions"]

E = TypeVar("E")

_named: WeakKeyDictionary[Engine, str] = WeakKeyDictionary()
"""The prefix of each engine."""


def name_transactions(engine: E, *, prefix: str = "") -> E:
    """Set the name of a scope as the ``application_name`` of its transactions, and return the engine.

    The name is set for the transaction only: when that ends, the connection has its previous name again, also behind a
    pooler. The name is cut at 63 bytes, and characters outside printable ASCII become question marks, because PostgreSQL
    accepts no others here.

    Args:
        engine: an ``Engine`` or ``AsyncEngine`` of a PostgreSQL database; engines derived from it are included.
        prefix: a prefix for the name, such as ``"shop/"``.

    Raises:
        OptionError: it is not an engine, or not one of PostgreSQL: no other database has an ``application_name``.

    SQL, at the start of each such transaction: ``SELECT set_config('application_name', ..., true)``.
    """
    root = root_engine(engine, "name_transactions()")
    if _dialects.of(root).name_transaction is None:
        raise OptionError(
            f"name_transactions() was called for {root!r}, but {root.dialect.name} has no application_name; use "
            "comment_statements(), which puts the scope's name into the statements of any database"
        )
    given: Any = prefix
    if not isinstance(given, str):
        raise OptionError(f"prefix={prefix!r} was given to name_transactions(); give a string")
    if not event.contains(orm.Session, "after_begin", _after_begin):
        event.listen(orm.Session, "after_begin", _after_begin)
    _named[root] = prefix
    return engine


def _after_begin(session: orm.Session, transaction: orm.SessionTransaction, connection: Connection) -> None:
    unit: Any = session.__dict__.get("_sessionkit_unit")
    name = None if unit is None else unit.request.name
    # If the session is bound to a connection, the transaction is not the scope's, and goes on after it.
    if name is None or transaction.parent is not None or connection is session.bind:
        return
    prefix = _named.get(root_of(connection.engine))
    give_name = _dialects.of(connection).name_transaction
    if prefix is not None and give_name is not None:
        give_name(connection, prefix + name)
