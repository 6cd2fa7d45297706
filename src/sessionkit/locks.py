"""Locks that tell the truth: they lock a row and, at the same time, refresh its object.

SQLAlchemy's ``with_for_update()`` locks the row of an object that is already loaded, but returns the object with its old
values. Here it is refreshed, and unflushed changes of it are an error. A lock belongs to the transaction of the session
you pass, and ends with it.

SQLite has one writer at a time: the BEGIN IMMEDIATE of a scope, or of an engine that `sqlite.configure` has set up, locks
every row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, overload

from sqlalchemy import Select, and_, bindparam, select, tuple_
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.exc import DBAPIError, InvalidRequestError, NoResultFound
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.orm.util import AliasedInsp

from . import _dialects
from ._core.session import unit_of
from ._lockable import alone, certain, tables_of
from ._mutex import mutex_key, seconds_of
from ._mutex import shown as seconds_shown
from ._stale_reads import LOCKING
from .context import current_of, sync_session_of
from .errors import Holder, LockError, NotLocked, OptionError, SyncAsyncMismatch, classify

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from sqlalchemy import ColumnElement
    from sqlalchemy.engine import Connection
    from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
    from sqlalchemy.orm import scoped_session
    from sqlalchemy.sql import FromClause

    AnySession = Session | scoped_session[Any]
    AnyAsyncSession = AsyncSession | async_scoped_session[Any]

__all__ = ["async_lock", "async_lock_all", "async_take", "lock", "lock_all", "mutex_key", "take"]

T = TypeVar("T")
Key = tuple[Any, ...]
Mode = Literal["update", "no_key_update", "share", "key_share"]

_MODES: dict[str, dict[str, bool]] = {
    "update": {},
    "no_key_update": {"key_share": True},
    "share": {"read": True},
    "key_share": {"read": True, "key_share": True},
}
"""The arguments of `Select.with_for_update` for each mode."""

_EXCLUSIVE = ("update", "no_key_update")

_NAMED = 100
"""The number of missing rows that a message names."""

_MOST = 30_000
"""The number of parameters that a statement may have on every driver."""


def lock(session: AnySession, entity: type[T], key: Any, *, mode: Mode = "update", wait: bool | float = True) -> T:
    """Lock the row with this primary key and return its object as it is now, refreshed if it was loaded before.

    The lock lasts until the session's transaction ends. With joined inheritance it covers the rows of all tables of the
    object's own class.

    Args:
        session: any session; its transaction gets the lock.
        entity: the mapped class.
        key: as in ``Session.get``: a value, or a tuple or mapping for a key of several columns.
        mode: how strong the lock is. ``"update"``: no other transaction may change, delete or lock the row.
            ``"no_key_update"``: the same, but others may insert rows that refer to it. ``"share"``: others may lock it in
            the same mode, and none may change it. ``"key_share"``: none may delete it or change its key.
        wait: True: as long as it takes, or until the scope's ``lock_timeout``. False: not at all. A number: at most that
            many seconds. Anything but True runs in a savepoint, so that the session is usable after `NotLocked`.

    Raises:
        NotLocked: another transaction holds the row and did not release it in time.
        LockError: the object has unflushed changes or is marked for deletion; the scope is read-only; the connection is
            in AUTOCOMMIT; the class is not mapped to tables that can be locked. On SQLite also: the transaction has not
            begun with BEGIN IMMEDIATE. Nothing was sent, and the changes are still there.
        NoResultFound: there is no such row.
        OptionError: there is no such mode, or `wait` is not a time.

    SQL: ``SELECT ... FOR UPDATE OF accounts``, with ``NOWAIT`` or a local ``lock_timeout`` inside a savepoint, and a second
    SELECT for the tables of a subclass that the first did not read. On SQLite without ``FOR UPDATE``.
    """
    locking = _Locking(session, entity, "lock()", mode, wait)
    identity = locking.identity(key)
    locking.prepare([identity])
    found = locking.run(lambda: locking.read([identity]), [identity], several=False)
    if not found:
        raise NoResultFound(locking.missing([identity]))
    return cast("T", found[0])


def lock_all(
    session: AnySession, entity: type[T], keys: Iterable[Any], *, mode: Mode = "update", wait: bool | float = True
) -> list[T]:
    """Lock the rows with these primary keys and return their objects as they are now, in the order of `keys`.

    The rows are locked in the order in which the database sorts their keys, whatever the order of `keys`: two calls for
    some of the same rows wait for each other, but never deadlock. Either all rows are locked or none.

    Args:
        session, entity, mode, wait: as for `lock`; a number of seconds applies to each row.
        keys: each as in ``Session.get``. A key given twice is returned twice. Without keys, nothing is sent.

    Raises:
        NotLocked, LockError, OptionError: as for `lock`; `keys` is no list of keys, but a string, say.
        NoResultFound: some rows do not exist. It names the first hundred of them and counts the others, and the call leaves no
            row locked.

    SQL: ``SAVEPOINT``, ``SELECT ... ORDER BY accounts.id FOR UPDATE OF accounts``, ``RELEASE SAVEPOINT``.
    """
    locking = _Locking(session, entity, "lock_all()", mode, wait)
    given = [locking.identity(key) for key in locking.listed(keys)]
    if not given:
        return []
    identities = list(dict.fromkeys(given))
    locking.prepare(identities)

    def all_of_them() -> dict[Key, Any]:
        found = locking.by_key(identities, locking.read(identities))
        if missing := [identity for identity in identities if identity not in found]:
            raise NoResultFound(locking.missing(missing))
        return found

    found = locking.run(all_of_them, identities, several=len(identities) > 1)
    return [found[identity] for identity in given]


@overload
def take(session: AnySession, statement: Select[Any], *, limit: None = None, mode: Mode = "update") -> Any: ...
@overload
def take(session: AnySession, statement: Select[Any], *, limit: int, mode: Mode = "update") -> list[Any]: ...
def take(session: AnySession, statement: Select[Any], *, limit: int | None = None, mode: Mode = "update") -> Any:
    """Lock the first row of a query that no other transaction has locked, and return its object, or None.

    Use it for a table of jobs: no row goes to a second taker before the first one's transaction has ended. In that
    transaction, change the row so that the query no longer finds it, or delete it. If a taker dies, the next one gets the
    row.

    Args:
        session: any session. It is flushed first.
        statement: a ``select()`` of one mapped class (or an alias of it), with joins, filters and an order, but without
            LIMIT, OFFSET, DISTINCT, GROUP BY or FOR UPDATE.
        limit: None: return one object, or None. A number: return a list of at most that many objects, possibly empty, in
            the order of the query. If a join repeats an object, the repetitions count.
        mode: ``"update"`` or ``"no_key_update"``, as for `lock`.

    Raises:
        LockError: the statement cannot be locked as it is; or autoflush is off and an object of the class has changes; or
            as for `lock`.
        OptionError: there is no such `mode` or `limit`.

    SQL: the statement with ``LIMIT 1 FOR UPDATE OF jobs SKIP LOCKED``. On SQLite only with ``LIMIT 1``.
    """
    entity = _entity_of(statement)
    locking = _Locking(session, entity, "take()", mode, True, modes=_EXCLUSIVE)
    checked: Any = limit
    if checked is not None and (isinstance(checked, bool) or not isinstance(checked, int) or checked < 1):
        raise OptionError(f"limit={limit!r} was given to take(); it is None, or a whole number, 1 or more")
    session = locking.session
    if not session.autoflush:
        for obj in locking.changed():
            raise LockError(
                f"take() was called while {type(obj).__name__} objects of the session have changes and its autoflush is "
                "off, so the read would overwrite them; flush first"
            )
    locking.prepare([])
    found = locking.run(lambda: locking.send(statement, limit or 1), [], several=False)
    return found if limit is not None else found[0] if found else None


class _Locking:
    """One call: what it locks, in which mode, and in which session."""

    def __init__(
        self,
        session: Any,
        entity: Any,
        where: str,
        mode: Any,
        wait: Any,
        modes: Iterable[str] = tuple(_MODES),
    ) -> None:
        if mode not in modes:
            raise OptionError(f"mode={mode!r} was asked of {where}; it is one of {', '.join(map(repr, modes))}")
        self.where = where
        self.mode = mode
        self.wait = seconds_of(wait, f"wait={wait!r} was given to {where}")
        self.session = _sync_session(session, where)
        found: Any = sa_inspect(entity, raiseerr=False)
        self.aliased = found if isinstance(found, AliasedInsp) else None
        mapper: Any = getattr(found, "mapper", None)
        if not isinstance(found, Mapper | AliasedInsp):
            raise LockError(f"{where} locks rows of a mapped class, not of {entity!r}")
        self.mapper: Mapper[Any] = mapper
        self.entity = entity
        self.name = self.mapper.class_.__name__

    # -- before anything is sent ------------------------------------------------------------------------------------

    def identity(self, key: Any) -> Key:
        """Return a primary key in the form that the identity map uses."""
        mapper = self.mapper
        if isinstance(key, Mapping):
            names = self._key_names()
            if missing := [name for name in names if name not in key]:
                raise InvalidRequestError(
                    f"{self.where} was given the key {key!r}, in which {', '.join(missing)} is missing; the primary key of "
                    f"{self.name} is {', '.join(names)}"
                )
            return tuple(key[name] for name in names)
        if hasattr(key, "__composite_values__"):
            key = key.__composite_values__()
        values = tuple(key) if isinstance(key, tuple | list) else (key,)
        if len(values) != len(mapper.primary_key):
            raise InvalidRequestError(
                f"{self.where} was given the key {key!r}; the primary key of {self.name} is "
                f"{', '.join(self._key_names())}, so a key is {self._key_form()}"
            )
        return values

    def listed(self, keys: Any) -> Iterable[Any]:
        """Return the keys that a caller gave, if they are a collection of keys.

        Raises:
            OptionError: they are one key, or nothing of the kind.
        """
        if isinstance(keys, str | bytes | Mapping) or not isinstance(keys, Iterable):
            raise OptionError(
                f"{self.where} was given keys={keys!r}, which is no list of keys; give it one, even for one row, or call "
                f"{self.where.replace('lock_all', 'lock')}"
            )
        return keys

    def missing(self, identities: Sequence[Key]) -> str:
        """Return the message for rows that do not exist."""
        named = ", ".join(map(_shown, identities[:_NAMED]))
        more = f" and {len(identities) - _NAMED} more" if len(identities) > _NAMED else ""
        verb, ending = ("was", "is no such row") if len(identities) == 1 else ("were", "are no such rows")
        return f"{self.name} {named}{more} {verb} asked for, but there {ending}"

    def _key_names(self) -> list[str]:
        return [self.mapper.get_property_by_column(column).key for column in self.mapper.primary_key]

    def _key_form(self) -> str:
        return "one value" if len(self.mapper.primary_key) == 1 else f"a tuple of {len(self.mapper.primary_key)} values"

    def changed(self) -> list[Any]:
        """Return the objects of the class, or of its base classes, that have changes or are marked for deletion."""
        session, base = self.session, self.mapper.base_mapper.class_
        changed = [obj for obj in session.dirty if isinstance(obj, base) and session.is_modified(obj)]
        return changed + [obj for obj in session.deleted if isinstance(obj, base)]

    def prepare(self, identities: Sequence[Key]) -> None:
        """Refuse what cannot be locked; then begin the transaction, and flush if the session autoflushes.

        Raises:
            LockError: see `lock`.
        """
        if identities:
            wanted = {tuple(map(str, identity)) for identity in identities}
            for obj in self.changed():
                identity = _identity_of(obj)
                if tuple(map(str, identity)) in wanted:
                    state = "is marked for deletion" if obj in self.session.deleted else "has changes"
                    raise LockError(
                        f"{self.where} was asked for {type(obj).__name__} {_shown(identity)}, which {state} in this session: "
                        "the locking read would overwrite it; flush first, or lock before you change it"
                    )
        unit = unit_of(self.session)
        if unit is not None and unit.read_only:
            raise LockError(f"{self.where} was called in {unit}, which is read-only; lock in a scope that writes")
        connection = self.connection()
        if _dialects.is_autocommit(connection):
            raise LockError(
                f"{self.where} was called on {connection.engine!r}, which runs in AUTOCOMMIT: a lock would end with its own "
                "statement; use an engine with transactions"
            )
        entry = _dialects.of(connection)
        if entry.locks is None:
            raise LockError(f"{self.where} was called on {entry.name}, whose locks sessionkit does not know")
        self.dialect = entry
        self.locks = entry.locks
        if why := self.locks.refused(connection):
            raise LockError(f"{self.where} was called on {connection.engine!r}, but {why}")
        if not self._made_of_tables():
            if self.aliased is not None:
                raise LockError(
                    f"{self.where} was given a query of an alias of {self.name} that means a subquery or for several "
                    f"tables, whose rows cannot be locked; select {self.name}, or an alias of one table"
                )
            raise LockError(
                f"{self.where} was asked for {self.name}, whose mapping is neither a table nor an inner join of tables, so "
                "its rows cannot be locked; lock the class that has the table"
            )
        if self.session.autoflush:
            self.session.flush()  # its errors are not about the lock

    def connection(self) -> Connection:
        return self.session.connection(bind_arguments={"mapper": self.mapper})

    def _made_of_tables(self) -> bool:
        tables = self._tables()
        return bool(tables) and (alone(select(self.entity)) is not None or set(tables) <= certain(select(self.entity)))

    def _tables(self) -> list[FromClause]:
        return tables_of(self.mapper if self.aliased is None else self.aliased)

    # -- sending ----------------------------------------------------------------------------------------------------

    def run(self, read: Callable[[], T], identities: Sequence[Key], *, several: bool) -> T:
        """Call the function that sends the statements, in a savepoint if the call needs one.

        Raises:
            NotLocked: see `lock`.
        """
        savepoint = self.session.begin_nested() if self.wait is not None or several else nullcontext()
        try:
            with savepoint:
                if not self.wait:
                    return read()
                connection = self.connection()
                before = self.locks.bound(connection, self.wait)
                result = read()
                self.locks.unbound(connection, before)
                return result
        except DBAPIError as error:
            if isinstance(error, NotLocked) or classify(error).kind != "lock_not_available":
                raise
            holders: tuple[Holder, ...] = ()
            if (self.wait is not None or several) and identities:
                table: Any = self._tables()[0]
                holders = self.locks.holders(self.connection(), table, [self._has_key(identities)])
            message = f"{self._asked(identities)} could not be locked{self._within()}{_held_by(holders)}"
            raise NotLocked.of(error, message, holders) from error

    def _within(self) -> str:
        """Return how long the call has waited, for a message: a scope's lock_timeout applies if it is shorter."""
        unit = unit_of(self.session)
        limit = None if unit is None else unit.preset.lock_timeout
        if self.wait is None or (limit is not None and limit < self.wait):
            return (
                " within lock_timeout" if limit is None else f" within {seconds_shown(limit)}, the scope's lock_timeout"
            )
        return " without a wait" if self.wait == 0 else f" within {seconds_shown(self.wait)}"

    def _asked(self, identities: Sequence[Key]) -> str:
        if not identities:
            return f"a row of {self.name}"
        shown = ", ".join(map(_shown, identities[:3]))
        return f"{self.name} {shown}" if len(identities) <= 3 else f"{self.name} {shown}, ... ({len(identities)} rows)"

    def read(self, identities: Sequence[Key]) -> list[Any]:
        """Lock the rows with these keys, in the order of their keys, and return their objects."""
        width = len(self.mapper.primary_key)
        at_once = max(1, _MOST // width)
        if len(identities) > at_once and self.dialect.bulk.locks_rows and width > 1:
            raise LockError(
                f"{self.where} was asked for {len(identities)} rows of {self.name}, but can lock only {at_once} of them in "
                "one order; lock fewer rows at once, or the whole table"
            )
        statement = select(self.entity).order_by(*self.mapper.primary_key)
        step = len(identities) if width == 1 and self.dialect.bulk.locks_rows else at_once
        found: list[Any] = []
        for low in range(0, len(identities), step):
            found += self.send(statement.where(self._has_key(identities[low : low + step])))
        return found

    def _has_key(self, identities: Sequence[Key]) -> ColumnElement[bool]:
        columns = self.mapper.primary_key
        # With the types of the columns, like Session.get: a key may be the text of a number.
        if len(identities) == 1:
            values = zip(columns, identities[0], strict=True)
            return and_(*(column == bindparam(None, value, type_=column.type) for column, value in values))
        if len(columns) > 1:
            kinds = [column.type for column in columns]
            return tuple_(*columns).in_([tuple_(*identity, types=kinds) for identity in identities])
        column: Any = next(iter(columns))
        keys = [identity[0] for identity in identities]
        told = self.dialect.bulk.any_of(column, column.type, keys) if len(set(map(type, keys))) == 1 else None
        return column.in_(bindparam(None, keys, type_=column.type, expanding=True)) if told is None else told

    def send(self, statement: Select[Any], limit: int | None = None) -> list[Any]:
        """Lock the rows that a query of the class returns, and return their objects, fresh; with a limit, skip locked rows."""
        tables = self._tables()
        if alone(statement) is None and not set(tables) <= certain(statement):
            raise LockError(
                f"{self.where} was given a query with {self.name} on the nullable side of an outer join, where a row may not "
                "exist and cannot be locked; turn the join round"
            )
        found = self._refreshed(statement, tables, limit)
        # The tables of a subclass, which a query of its base class does not read, or reads through an outer join.
        own = {getattr(table, "element", table) for table in tables}  # for an alias, its table
        derived: dict[Mapper[Any], list[Any]] = {}
        for obj in found:
            derived.setdefault(instance_state(obj).mapper, []).append(obj)
        for mapper, objects in derived.items():
            if rest := [table for table in tables_of(mapper) if table not in own]:
                self._lock_rest(mapper, rest, objects)
        return found

    def _lock_rest(self, mapper: Mapper[Any], tables: list[FromClause], objects: list[Any]) -> None:
        of_class = _Locking(self.session, mapper.class_, self.where, self.mode, True)
        of_class.wait, of_class.dialect = self.wait, self.dialect
        keys = [_identity_of(obj) for obj in objects]
        statement = select(mapper).order_by(*mapper.primary_key).where(of_class._has_key(keys))
        of_class._refreshed(statement, tables)

    def _refreshed(self, statement: Select[Any], tables: list[FromClause], limit: int | None = None) -> list[Any]:
        session = self.session
        modes = _MODES[self.mode]
        skips = limit is not None
        locking = statement.limit(limit).with_for_update(of=tables, nowait=self.wait == 0, skip_locked=skips, **modes)
        clean = not (any(map(session.is_modified, session.dirty)) or session.deleted)
        # This query must not overwrite an object with changes that nothing flushes: if there is one, refresh the locked
        # objects one by one.
        before = set() if clean else {id(obj) for obj in session.identity_map.values()}
        options = {LOCKING: True, "populate_existing": True} if clean else {LOCKING: True}
        found = list(session.scalars(locking.execution_options(**options)).unique())
        for obj in found:
            if id(obj) in before:
                attributes = instance_state(obj).mapper
                held = obj.__dict__
                session.refresh(obj, [each.key for each in attributes.column_attrs if each.key in held])
                if loaded := [each.key for each in attributes.relationships if each.key in held]:
                    session.expire(obj, loaded)
        return found

    # -- keys -------------------------------------------------------------------------------------------------------

    def by_key(self, identities: Sequence[Key], objects: Sequence[Any]) -> dict[Key, Any]:
        """Return the objects by the requested keys, which may be equal in the database and still differ in Python."""
        having: dict[Key, Any] = {_identity_of(obj): obj for obj in objects}
        found = {identity: having[identity] for identity in identities if identity in having}
        if len(found) == len(identities) or not objects:
            return found
        columns = self.mapper.primary_key
        for identity in identities:
            if identity not in found:
                row = self.connection().execute(select(*columns).where(self._has_key([identity]))).first()
                if row is not None and (same := having.get(tuple(row))) is not None:
                    found[identity] = same
        return found


def _entity_of(statement: object) -> Any:
    """Return the class or alias that a query selects.

    Raises:
        LockError: it selects something else, or has a clause that take() cannot lock.
    """
    if not isinstance(statement, Select):
        raise LockError(f"take() was given {type(statement).__name__}; it takes a select() of one mapped class")
    descriptions = statement.column_descriptions
    entity = descriptions[0]["expr"] if len(descriptions) == 1 else None
    if not isinstance(sa_inspect(entity, raiseerr=False), Mapper | AliasedInsp):
        raise LockError(
            "take() was given a query of columns, or of several classes; it takes a select() of one mapped class"
        )
    own = {
        "LIMIT": statement._limit_clause is not None or statement._fetch_clause is not None,
        "OFFSET": statement._offset_clause is not None,
        "DISTINCT": statement._distinct,
        "GROUP BY": statement._group_by_clauses or statement._having_criteria,
        "FOR UPDATE": statement._for_update_arg is not None,
    }
    for word, there in own.items():
        if there:
            raise LockError(
                f"take() was given a query with {word}, which it cannot lock; leave it out{_INSTEAD.get(word, '')}"
            )
    if "yield_per" in statement._execution_options:
        raise LockError("take() was given a query with yield_per, but it reads all its rows at once; leave it out")
    return entity


_INSTEAD = {"LIMIT": ", and pass limit= to take()", "FOR UPDATE": ", and pass mode= to take()"}


def _sync_session(session: Any, where: str) -> Session:
    session = current_of(session)
    if not isinstance(session, Session) and hasattr(session, "sync_session"):
        raise SyncAsyncMismatch(
            f"{where} was given {session!r}, which is async; await async_{where.removesuffix('()')}()"
        )
    return sync_session_of(session, where)


def _identity_of(obj: object) -> Key:
    key = instance_state(obj).key
    assert key is not None
    return key[1]


def _shown(identity: Key) -> str:
    return repr(identity[0] if len(identity) == 1 else tuple(identity))


def _held_by(holders: Sequence[Holder]) -> str:
    return f": held by {', '.join(map(str, holders))}" if holders else ": somebody else holds it"


def _async(fn: Callable[..., Any]) -> Any:
    """Return the twin of a function of this module for an AsyncSession or an async scoped session."""

    @wraps(fn)
    async def twin(session: Any, /, *args: Any, **kwargs: Any) -> Any:
        current = current_of(session)
        if not hasattr(current, "run_sync"):
            raise SyncAsyncMismatch(
                f"async_{fn.__name__}() was given {session!r}, which is not an AsyncSession; call {fn.__name__}()"
            )
        return await current.run_sync(fn, *args, **kwargs)

    twin.__name__ = twin.__qualname__ = f"async_{fn.__name__}"
    twin.__doc__ = f"The async twin of `{fn.__name__}`, on an ``AsyncSession``."
    return twin


if TYPE_CHECKING:

    def async_lock(
        session: AnyAsyncSession, entity: type[T], key: Any, *, mode: Mode = "update", wait: bool | float = True
    ) -> Coroutine[Any, Any, T]:
        """The async twin of `lock`, on an ``AsyncSession``."""
        ...

    def async_lock_all(
        session: AnyAsyncSession,
        entity: type[T],
        keys: Iterable[Any],
        *,
        mode: Mode = "update",
        wait: bool | float = True,
    ) -> Coroutine[Any, Any, list[T]]:
        """The async twin of `lock_all`, on an ``AsyncSession``."""
        ...

    @overload
    def async_take(
        session: AnyAsyncSession, statement: Select[Any], *, limit: None = None, mode: Mode = "update"
    ) -> Coroutine[Any, Any, Any]: ...
    @overload
    def async_take(
        session: AnyAsyncSession, statement: Select[Any], *, limit: int, mode: Mode = "update"
    ) -> Coroutine[Any, Any, list[Any]]: ...
    def async_take(
        session: AnyAsyncSession, statement: Select[Any], *, limit: int | None = None, mode: Mode = "update"
    ) -> Coroutine[Any, Any, Any]:
        """The async twin of `take`, on an ``AsyncSession``."""
        ...
else:
    async_lock = _async(lock)
    async_lock_all = _async(lock_all)
    async_take = _async(take)
