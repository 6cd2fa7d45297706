"""The kinds of version: a count, a time, a UUID, PostgreSQL's xmin. Values only; nothing here knows about sessions."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from sqlalchemy import DateTime, String, cast, type_coerce
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, UserDefinedType, Uuid

from .. import _dialects
from ..errors import VersionError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from sqlalchemy import Column, ColumnElement
    from sqlalchemy.engine import Connection, Dialect
    from sqlalchemy.engine.interfaces import ExecutionContext
    from sqlalchemy.sql.compiler import SQLCompiler
    from sqlalchemy.types import TypeEngine

clock: ContextVar[Callable[[], datetime] | None] = ContextVar("sessionkit_version_clock", default=None)
"""Asks the server that the running flush or bulk statement writes to for its time."""


@contextmanager
def telling_time(ask: Callable[[], datetime]) -> Generator[None]:
    """Take the time of `TimestampVersioned` from `ask` inside the block, for a bulk statement outside a flush."""
    token = clock.set(ask)
    try:
        yield
    finally:
        clock.reset(token)


_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class VersionKind:
    """One kind of version.

    Attributes:
        name: the class that users inherit.
        attribute: the name of the mapped attribute.
        type: the Python type of its values.
        following: makes the next version from the current one, or the first from None; None if the database makes it.
        following_sql: the same as SQL, from the column; None if the statement need not set it.
        parse: turns the text that a client sent back into a version; raises ValueError.
        ordered: whether two versions show which one is older.
        backfill: SQL for the version of a row that has none yet.
    """

    name: str
    attribute: str
    type: type[Any]
    following: Callable[[Any], Any] | None
    following_sql: Callable[[ColumnElement[Any]], ColumnElement[Any]] | None
    parse: Callable[[str], Any]
    ordered: bool
    backfill: str

    def text(self, version: Any) -> str:
        """Write a version so that `parse` reads it."""
        return version.isoformat(timespec="microseconds") if isinstance(version, datetime) else str(version)

    def understood(self, version: Any) -> Any:
        """Return a version that a caller passed in, as a value of this kind.

        Raises:
            VersionError: it is not a version of this kind.
        """
        if isinstance(version, str):
            try:
                return self.parse(version)
            except ValueError as error:
                raise VersionError(f"{version!r} is not a version of a {self.name} class: {error}") from error
        if not isinstance(version, self.type) or isinstance(version, bool):
            raise VersionError(
                f"{version!r} is not a version of a {self.name} class; pass a value of type {self.type.__name__}, or "
                "its text"
            )
        return in_utc(version) if isinstance(version, datetime) else version


# The count


def _next_count(current: int | None) -> int:
    return (current or 0) + 1


def _count(text: str) -> int:
    # int() also takes "1_000", " 1" and digits of other scripts.
    if not (text.isascii() and text.isdigit()):
        raise ValueError("it must be a count, written in digits only")
    return int(text)


COUNT = VersionKind(
    "Versioned", "version_id", int, _next_count, lambda column: column + 1, _count, ordered=True, backfill="1"
)


# The time


def in_utc(moment: datetime) -> datetime:
    """Return the same moment, aware and in UTC; a time without a zone is taken as UTC."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


class Moment(TypeDecorator[datetime]):
    """A time in UTC with microseconds. SQLite has no time zones and stores the digits of UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else in_utc(value)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else in_utc(value)


def server_now(connection: Connection) -> datetime:
    """Ask the server's clock.

    Raises:
        VersionError: sessionkit does not know how to ask this dialect.
    """
    now = _dialects.of(connection).now
    if now is None:
        raise VersionError(
            "TimestampVersioned takes its time from the server's clock, and sessionkit does not know how to read the "
            f"clock of {connection.dialect.name}; use Versioned or UUIDVersioned there"
        )
    return in_utc(now(connection))


def first_moment(context: ExecutionContext) -> datetime:
    """Return the column's default, for a Core INSERT, which runs outside any flush."""
    return server_now(context.root_connection)


def later_moment(column: Column[Any]) -> ColumnElement[datetime]:
    """Return SQL for the current time, or for a time just after the column's if that is later."""
    return _Later(column)


def _next_moment(current: datetime | None) -> datetime:
    ask = clock.get()
    if ask is None:
        raise VersionError(
            "TimestampVersioned takes its time from the server's clock, and this call does not tell which server "
            "that is; instead of a legacy bulk method, use a flush or session.execute(insert(...), rows)"
        )
    now = ask()
    # The clock may stand still or go back (a failover, ntp). The WHERE compares `current`, so its successor is later than
    # every version this row has had; see test_a_timestamp_increases_even_if_the_clock_goes_back.
    return now if current is None else max(now, in_utc(current) + _MICROSECOND)


def _moment(text: str) -> datetime:
    return in_utc(datetime.fromisoformat(text))


class _Later(FunctionElement[datetime]):
    name = "later"
    type = Moment()
    inherit_cache = True


class _NewUuid(FunctionElement[UUID]):
    name = "new_uuid"
    type = Uuid()
    inherit_cache = True


@compiles(_Later)
def _compile_later(element: _Later, compiler: SQLCompiler, **kw: Any) -> str:
    (column,) = element.clauses
    return _sql_of(compiler, "later").format(column=compiler.process(column, **kw))


@compiles(_NewUuid)
def _compile_new_uuid(element: _NewUuid, compiler: SQLCompiler, **kw: Any) -> str:
    return _sql_of(compiler, "new_uuid")


def _sql_of(compiler: SQLCompiler, word: str) -> str:
    sql: str | None = getattr(_dialects.of_name(compiler.dialect.name), word)
    if sql is None:
        raise VersionError(
            f"sessionkit does not know how to make the next version in the SQL of {compiler.dialect.name}; use "
            "Versioned there, or change the objects in a session"
        )
    return sql


MOMENT = VersionKind(
    "TimestampVersioned",
    "updated_at",
    datetime,
    _next_moment,
    _Later,
    _moment,
    ordered=True,
    backfill="CURRENT_TIMESTAMP",
)


# The UUID

UUID4 = VersionKind(
    "UUIDVersioned",
    "version_id",
    UUID,
    lambda _current: uuid4(),
    lambda _column: _NewUuid(),
    UUID,
    ordered=False,
    backfill="a new UUID for each row",
)


# xmin


class _Xid(UserDefinedType[int]):
    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "xid"


class _Digits(TypeDecorator[int]):
    impl = String
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Dialect) -> Any:
        return None if value is None else str(value)


class Xmin(TypeDecorator[int]):
    """The transaction that wrote a row. It refuses to compile for any backend but PostgreSQL."""

    impl = _Xid
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if not _dialects.of_name(dialect.name).xmin:
            raise VersionError(
                f"XminVersioned was used on {dialect.name}, whose rows do not record which transaction wrote them; "
                "use Versioned, UUIDVersioned or TimestampVersioned there"
            )
        return _Xid()

    def bind_expression(self, bindparam: Any) -> ColumnElement[Any]:
        # As text: drivers send an int as int4 or int8, but xid can only be compared with int4, which covers half of the
        # counter's range; see test_xmin_is_compared_beyond_two_billion.
        return cast(type_coerce(bindparam, _Digits()), _Xid())

    def process_result_value(self, value: Any, dialect: Dialect) -> int | None:
        return None if value is None else int(value)


XMIN = VersionKind("XminVersioned", "version_id", int, None, None, _count, ordered=False, backfill="")
