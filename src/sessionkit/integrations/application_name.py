"""The scope's name where PostgreSQL shows who is connected.

::

    from sessionkit.integrations.application_name import name_transactions

    name_transactions(engine)

``pg_stat_activity``, the server's log and its locks views then tell which scope a transaction belongs to.
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
"""For each engine the prefix."""


def name_transactions(engine: E, *, prefix: str = "") -> E:
    """Have the transactions of named scopes bear that name as their ``application_name``, and return the engine.

    It is set for the transaction only: when that ends, the connection is called what it was called before, also behind
    a pooler. The name is cut at 63 bytes; what is not printable ASCII becomes a question mark, as PostgreSQL has none
    of it in this place.

    Args:
        engine: an ``Engine`` or ``AsyncEngine`` of a PostgreSQL database; what was derived from it is meant as well.
        prefix: put before the name, such as ``"shop/"``.

    Raises:
        OptionError: it is no engine, or none of PostgreSQL, which alone has such a name.

    SQL, at the begin of each such transaction: ``SELECT set_config('application_name', ..., true)``.
    """
    root = root_engine(engine, "name_transactions()")
    if _dialects.of(root).name_transaction is None:
        raise OptionError(
            f"name_transactions() was called for {root!r}, but {root.dialect.name} has no application_name; "
            "comment_statements() puts the scope's name into the statements of any database"
        )
    given: Any = prefix
    if not isinstance(given, str):
        raise OptionError(f"prefix={prefix!r} was given to name_transactions(); it is a string")
    if not event.contains(orm.Session, "after_begin", _after_begin):
        event.listen(orm.Session, "after_begin", _after_begin)
    _named[root] = prefix
    return engine


def _after_begin(session: orm.Session, transaction: orm.SessionTransaction, connection: Connection) -> None:
    unit: Any = session.__dict__.get("_sessionkit_unit")
    name = None if unit is None else unit.request.name
    # The transaction of a connection that the session is bound to is not the scope's, and goes on after it.
    if name is None or transaction.parent is not None or connection is session.bind:
        return
    prefix = _named.get(root_of(connection.engine))
    give_name = _dialects.of(connection).name_transaction
    if prefix is not None and give_name is not None:
        give_name(connection, prefix + name)
