"""What a version can be: a count, a time, a UUID, PostgreSQL's xmin. Values only; nothing here knows a session."""

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
"""Asks the server that is written to for its time. Set while a flush or a bulk statement runs."""


@contextmanager
def telling_time(ask: Callable[[], datetime]) -> Generator[None]:
    """Take the time of `TimestampVersioned` from `ask` while the block runs: a bulk statement, which no flush surrounds."""
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
        attribute: under which name it is mapped.
        type: of its values in Python.
        following: makes the next version from the current one, or the first from None; None: the database does it.
        following_sql: the same as SQL, from the column; None: nothing needs to be said.
        parse: makes a version of the text that a client sent back; raises ValueError.
        ordered: of two versions one can tell which is the older.
        backfill: SQL that gives a version to a row which has none.
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
        """Return a version that a caller gave, as a value of this kind.

        Raises:
            VersionError: it is none.
        """
        if isinstance(version, str):
            try:
                return self.parse(version)
            except ValueError as error:
                raise VersionError(f"{version!r} is not a version of a {self.name} class: {error}") from error
        if not isinstance(version, self.type) or isinstance(version, bool):
            raise VersionError(
                f"{version!r} is not a version of a {self.name} class; that is of type {self.type.__name__}, "
                "or the text of one"
            )
        return in_utc(version) if isinstance(version, datetime) else version


# The count


def _next_count(current: int | None) -> int:
    return (current or 0) + 1


def _count(text: str) -> int:
    # int() also takes "1_000", " 1" and digits of other scripts.
    if not (text.isascii() and text.isdigit()):
        raise ValueError("it should be a count, all digits")
    return int(text)


COUNT = VersionKind(
    "Versioned", "version_id", int, _next_count, lambda column: column + 1, _count, ordered=True, backfill="1"
)


# The time


def in_utc(moment: datetime) -> datetime:
    """Return the same moment, aware, in UTC; what has no zone is taken for UTC."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


class Moment(TypeDecorator[datetime]):
    """A time in UTC with microseconds. SQLite has no zones: there the digits are UTC's."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else in_utc(value)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else in_utc(value)


def server_now(connection: Connection) -> datetime:
    """Ask the server's clock.

    Raises:
        VersionError: the dialect's table entry does not say how.
    """
    now = _dialects.of(connection).now
    if now is None:
        raise VersionError(
            f"TimestampVersioned takes its time from the server's clock, and sessionkit does not know that of "
            f"{connection.dialect.name}; use Versioned or UUIDVersioned there"
        )
    return in_utc(now(connection))


def first_moment(context: ExecutionContext) -> datetime:
    """Return the column's default: for a Core INSERT, which no flush surrounds."""
    return server_now(context.root_connection)


def later_moment(column: Column[Any]) -> ColumnElement[datetime]:
    """Return SQL for a time that is now, and later than that in the column."""
    return _Later(column)


def _next_moment(current: datetime | None) -> datetime:
    ask = clock.get()
    if ask is None:
        raise VersionError(
            "TimestampVersioned takes its time from the server's clock, and this call does not tell which server "
            "that is; in the place of a legacy bulk method, use a flush or session.execute(insert(...), rows)"
        )
    now = ask()
    # The clock may stand still or go back (a failover, ntp). The WHERE holds `current`, so what follows it is later
    # than all that this row ever had; see test_a_timestamp_increases_even_if_the_clock_goes_back.
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
    return _said(compiler, "later").format(column=compiler.process(column, **kw))


@compiles(_NewUuid)
def _compile_new_uuid(element: _NewUuid, compiler: SQLCompiler, **kw: Any) -> str:
    return _said(compiler, "new_uuid")


def _said(compiler: SQLCompiler, word: str) -> str:
    sql: str | None = getattr(_dialects.of_name(compiler.dialect.name), word)
    if sql is None:
        raise VersionError(
            f"sessionkit does not know how {compiler.dialect.name} makes the next version in SQL; "
            "use Versioned there, or change the objects in a session"
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
    """The transaction that wrote a row. Compiling a statement with it for a backend that has none is refused."""

    impl = _Xid
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if not _dialects.of_name(dialect.name).xmin:
            raise VersionError(
                f"XminVersioned was used on {dialect.name}, whose rows do not tell which transaction wrote them; "
                "use Versioned, UUIDVersioned or TimestampVersioned there"
            )
        return _Xid()

    def bind_expression(self, bindparam: Any) -> ColumnElement[Any]:
        # As text, since drivers send an int as int4 or int8, and the comparison with xid exists for int4 only, which
        # is half of the counter's range; see test_xmin_is_compared_beyond_two_billion.
        return cast(type_coerce(bindparam, _Digits()), _Xid())

    def process_result_value(self, value: Any, dialect: Dialect) -> int | None:
        return None if value is None else int(value)


XMIN = VersionKind("XminVersioned", "version_id", int, None, None, _count, ordered=False, backfill="")
