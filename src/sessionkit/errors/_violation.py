"""Which constraint an error reports: its kind, its table and its columns, and what of the mapping they are."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.exc import NoSuchTableError
from sqlalchemy.orm import Mapper, mapperlib

from .. import _sqlstate
from ._usage import OptionError, SyncAsyncMismatch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import FrameType

    Named = sa.Constraint | sa.Index

ViolationKind = Literal["unique", "foreign_key", "not_null", "check", "exclusion"]

_KINDS: dict[str, ViolationKind] = {
    "unique_violation": "unique",
    "foreign_key_violation": "foreign_key",
    "not_null_violation": "not_null",
    "check_violation": "check",
    "exclusion_violation": "exclusion",
}


@dataclass(frozen=True, slots=True)
class Violation:
    """The constraint that refused a write.

    What the driver, the mapping and the catalogue do not say is None or empty.

    Attributes:
        kind: ``"unique"`` (of a primary key too), ``"foreign_key"``, ``"not_null"``, ``"check"`` or ``"exclusion"``.
        table: the name of the table that has the constraint; of a foreign key, the table that refers to the other.
        schema: its schema.
        constraint: the name of the constraint or of the unique index.
        columns: its columns in the database, in its order.
        attributes: the mapped attributes of these columns.
        entity: the class whose flush failed, if it is mapped to the table; else the class that is mapped to it, or None if
            several are.
    """

    kind: ViolationKind
    table: str | None = None
    schema: str | None = None
    constraint: str | None = None
    columns: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    entity: type | None = None


def violation(error: BaseException, bind: sa.Engine | sa.Connection | None = None) -> Violation | None:
    """Return which constraint an error reports, or None if it reports none.

    Works the same for psycopg, psycopg2, asyncpg, sqlite3 and aiosqlite, in sync and async code. It asks the fields of the
    driver's error first, and then the mapped tables: a constraint is found by its name, one without a name by the name that
    PostgreSQL makes up for it. The text of an error is read on SQLite only, which has no fields: the fixed form of its
    messages gives table and columns of a unique or NOT NULL constraint, the name or the expression of a check, and of a
    foreign key nothing at all.

    Args:
        error: any exception that holds a driver's error: SQLAlchemy's ``IntegrityError``, the driver's own, a `BulkError`, the
            ``error`` of a ``Rejected`` row, an `UnexpectedRollback`, one that was raised
            ``from`` one of these, or a group of them.
        bind: where to look for a constraint that no mapped table has, such as one of a partition or one that only a migration
            knows: an engine, or a connection whose transaction has not failed. In async code, await
            ``connection.run_sync(lambda sync: violation(error, sync))``.

    Raises:
        OptionError: `bind` is something else.
        SyncAsyncMismatch: `bind` is async.

    Emits no SQL without `bind`; with it, SQLAlchemy's inspector reads the catalogue if the mapping does not know the
    constraint.
    """
    _check(bind)
    for each in _held(error):
        code = _sqlstate.look_up(each)
        kind = _KINDS.get(code.meaning.kind) if code is not None else None
        if kind is not None:
            reported = _fields(each, kind) if not hasattr(each, "sqlite_errorcode") else _of_sqlite(each, kind)
            if kind == "check" and reported.constraint is None and reported.rest is None:
                return None  # PostgreSQL uses the code of a check for a row that no partition takes, too
            return _identified(reported, _flushed(error), bind)
    return None


def _check(bind: object) -> None:
    if bind is None or isinstance(bind, sa.Engine | sa.Connection):
        return
    # By its name: SQLAlchemy's asyncio part cannot be imported without greenlet.
    if type(bind).__module__.startswith("sqlalchemy.ext.asyncio"):
        raise SyncAsyncMismatch(
            f"violation() was given {bind!r}, which is async; await connection.run_sync(lambda sync: violation(error, sync))"
        )
    raise OptionError(f"violation() was given {bind!r} as bind; give it an engine or a connection")


def _held(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that it holds: what SQLAlchemy wraps, what it was raised from, what a row failed with."""
    seen: set[int] = set()
    todo: list[object] = [error]
    while todo:
        each = todo.pop(0)
        if isinstance(each, BaseException) and id(each) not in seen:
            seen.add(id(each))
            yield each
            # Not its context: an error that was raised while another one was handled does not report that one.
            todo += [getattr(each, "orig", None), each.__cause__, *getattr(each, "exceptions", ())]


# -- what the driver says ---------------------------------------------------------------------------------------------------


class _Reported(NamedTuple):
    """What an error says: names of the database."""

    kind: ViolationKind
    table: str | None = None
    schema: str | None = None
    constraint: str | None = None
    columns: tuple[str, ...] = ()
    rest: str | None = None
    """What SQLite says behind the colon, which the mapping helps to take apart."""


def _fields(error: BaseException, kind: ViolationKind) -> _Reported:
    # psycopg and psycopg2 have `diag`; asyncpg's own error has attributes, and SQLAlchemy's adapter has it as its cause.
    for each in (getattr(error, "diag", None), error, error.__cause__):
        if getattr(each, "table_name", None) or getattr(each, "constraint_name", None):
            column = getattr(each, "column_name", None)
            table, schema, name = (getattr(each, f"{what}_name", None) for what in ("table", "schema", "constraint"))
            return _Reported(kind, table, schema, name, (column,) if column else ())
    return _Reported(kind)


def _of_sqlite(error: BaseException, kind: ViolationKind) -> _Reported:
    # The forms are those of sqlite3UniqueConstraint() in SQLite's build.c and of sqlite3GenerateConstraintChecks() in its
    # insert.c: `UNIQUE constraint failed: t.a, t.b` or `index 'i'`, `NOT NULL constraint failed: t.a`, `CHECK constraint
    # failed: name or expression`, `FOREIGN KEY constraint failed`.
    _, colon, rest = str(error).partition(" constraint failed: ")
    if not colon:
        return _Reported(kind)
    if kind == "check":
        return _Reported(kind, constraint=rest if rest.isidentifier() else None, rest=rest)
    index = re.fullmatch(r"index '(.*)'", rest, re.DOTALL)
    if index is not None:
        return _Reported(kind, constraint=index.group(1))
    table, _, column = rest.partition(", ")[0].rpartition(".")
    columns = tuple(part.removeprefix(f"{table}.") for part in rest.split(", "))
    return _Reported(kind, table, columns=columns if column else (), rest=rest)


# -- what the mapping says --------------------------------------------------------------------------------------------------


def _identified(reported: _Reported, flushed: Mapper[Any] | None, bind: sa.Engine | sa.Connection | None) -> Violation:
    mappers = [mapper for registry in mapperlib._all_registries() for mapper in registry.mappers]
    # Two applications in one process may each map a table of that name: the flush says whose it was.
    tables = _candidates(reported, _tables(flushed.registry.mappers)) if flushed is not None else []
    table, constraint = _found(reported, tables or _candidates(reported, _tables(mappers)))
    answer = Violation(reported.kind, reported.table, reported.schema, reported.constraint, reported.columns)
    if table is not None:
        answer = _of_table(reported, table, constraint)
    if bind is not None and answer.table is not None and not (answer.columns and answer.constraint):
        answer = _from_catalogue(answer, bind)
    if table is None:
        return answer
    entity = _entity(table, flushed, mappers)
    return replace(answer, entity=entity, attributes=_attributes(table, answer.columns, flushed, mappers))


def _found(reported: _Reported, tables: list[sa.Table]) -> tuple[sa.Table | None, Named | None]:
    """Return the table that the error is about, and the constraint, where there is only one that it can be."""
    found = [(table, constraint) for table in tables for constraint in _matching(reported, table)]
    if len(found) == 1:
        return found[0]
    meant = {table for table, _ in found} or (set(tables) if reported.table is not None else set())
    return (meant.pop() if len(meant) == 1 else None), None


def _tables(mappers: Iterable[Mapper[Any]]) -> list[sa.Table]:
    return list({table: None for mapper in mappers for table in mapper.tables if isinstance(table, sa.Table)})


def _candidates(reported: _Reported, tables: list[sa.Table]) -> list[sa.Table]:
    """Return the mapped tables that the error can be about."""
    if reported.table is None:
        return tables if reported.constraint is not None or reported.rest is not None else []
    if reported.rest is not None:
        return [table for table in tables if _columns_in(reported.rest, table)]
    named = [table for table in tables if table.name == reported.table]
    exact = [table for table in named if table.schema == reported.schema]
    # A mapping says no schema for those of the search path, and another one where schema_translate_map is in force.
    return exact or named


def _columns_in(rest: str, table: sa.Table) -> tuple[str, ...]:
    """Return the columns of SQLite's ``t.a, t.b`` if these are of this table: names may hold dots and commas."""
    prefix = f"{table.name}."
    if not rest.startswith(prefix):
        return ()
    columns = tuple(rest.removeprefix(prefix).split(f", {prefix}"))
    return columns if all(column in {each.name for each in table.columns} for column in columns) else ()


def _matching(reported: _Reported, table: sa.Table) -> list[Named]:
    """Return the constraints of a table that the error can mean."""
    written_at_columns = [each for column in table.columns for each in column.constraints]
    every: list[Named] = [*table.constraints, *table.indexes, *written_at_columns]
    if reported.constraint is not None:
        named = [each for each in every if _name_of(each) == reported.constraint]
        return named or [each for each in every if _made_up(each, table, reported)]
    if reported.kind == "check":
        checks = [each for each in every if isinstance(each, sa.CheckConstraint)]
        return [each for each in checks if each.name is None and str(each.sqltext) == reported.rest]
    if reported.kind != "unique":
        return []
    columns = set(_columns_in(reported.rest or "", table))
    return [each for each in every if _is_unique(each) and columns and set(_columns_of(each)) == columns]


def _is_unique(each: Named) -> bool:
    return (
        each.unique if isinstance(each, sa.Index) else isinstance(each, sa.PrimaryKeyConstraint | sa.UniqueConstraint)
    )


def _columns_of(each: Named) -> list[str]:
    """Return the columns of a constraint, as far as SQLAlchemy knows them: not those of a text."""
    columns = [column.name for column in getattr(each, "columns", ())]
    at = getattr(each, "parent", None)
    return columns or ([at.name] if isinstance(at, sa.Column) else [])


_LONGEST = 63
_preparer = DefaultDialect(max_identifier_length=_LONGEST).identifier_preparer


def _name_of(each: Named) -> str | None:
    """Return the name that a constraint has in the database, by naming convention and cut where it is too long."""
    return None if each.name is None else _preparer.format_constraint(each, _alembic_quote=False)


_SUFFIXES: tuple[tuple[type[sa.Constraint], str], ...] = (
    (sa.PrimaryKeyConstraint, "pkey"),
    (sa.UniqueConstraint, "key"),
    (sa.ForeignKeyConstraint, "fkey"),
    (sa.CheckConstraint, "check"),
)


def _made_up(each: Named, table: sa.Table, reported: _Reported) -> bool:
    """Tell whether the error names a constraint as PostgreSQL does that was created without a name."""
    if isinstance(each, sa.Index) or _name_of(each) is not None or reported.constraint is None:
        return False
    suffix = next((suffix for kind, suffix in _SUFFIXES if isinstance(each, kind)), "excl")
    columns = _columns_of(each)
    if suffix == "pkey" or (suffix == "check" and len(columns) != 1):
        columns = []
    made = _shortened(table.name, "_".join(columns), suffix)
    # A number follows where that name was taken.
    return re.fullmatch(rf"{re.escape(made)}\d*", reported.constraint) is not None


def _shortened(table: str, columns: str, suffix: str) -> str:
    """Cut the longer of two parts until the name fits, as PostgreSQL's makeObjectName() does, in bytes."""
    first, second = table.encode(), columns.encode()
    room = _LONGEST - len(suffix) - 1 - (1 if second else 0)
    while len(first) + len(second) > room:
        if len(first) > len(second):
            first = first[:-1]
        else:
            second = second[:-1]
    parts = [part.decode(errors="ignore") for part in (first, second) if part]
    return "_".join([*parts, suffix])


def _of_table(reported: _Reported, table: sa.Table, constraint: Named | None) -> Violation:
    columns = _columns_in(reported.rest or "", table) or reported.columns
    name = reported.constraint
    if constraint is not None:
        columns = columns or tuple(_columns_of(constraint))
        name = name or _name_of(constraint)
    if not columns and reported.kind == "check" and name is not None:
        # The columns of a check that is written as text are not known to SQLAlchemy. PostgreSQL's own name tells a single one.
        named = [column.name for column in table.columns if name == _shortened(table.name, column.name, "check")]
        columns = tuple(named) if len(named) == 1 else ()
    return Violation(reported.kind, table.name, reported.schema or table.schema, name, columns)


# -- what the catalogue says ------------------------------------------------------------------------------------------------


def _from_catalogue(answer: Violation, bind: sa.Engine | sa.Connection) -> Violation:
    inspector = sa.inspect(bind)
    try:
        columns = {name: found for name, found in _constraints(inspector, answer) if all(found)}
    except NoSuchTableError:
        return answer
    if answer.constraint is not None:
        return replace(answer, columns=answer.columns or tuple(columns.get(answer.constraint, ())))
    names = [name for name, found in columns.items() if name and set(found) == set(answer.columns)]
    return replace(answer, constraint=names[0]) if len(names) == 1 else answer


def _constraints(inspector: sa.Inspector, answer: Violation) -> Iterator[tuple[str | None, list[str]]]:
    table, schema = str(answer.table), answer.schema
    if answer.kind == "foreign_key":
        for key in inspector.get_foreign_keys(table, schema):
            yield key["name"], key["constrained_columns"]
        return
    if answer.kind not in ("unique", "exclusion"):
        return
    primary = inspector.get_pk_constraint(table, schema)
    yield primary["name"], primary["constrained_columns"]
    for unique in inspector.get_unique_constraints(table, schema):
        yield unique["name"], unique["column_names"]
    for index in inspector.get_indexes(table, schema):
        if index["unique"] or answer.kind == "exclusion":
            yield index["name"], index["column_names"]  # type: ignore[misc]  # None for an expression: left out


# -- whose it is ------------------------------------------------------------------------------------------------------------


def _flushed(error: BaseException) -> Mapper[Any] | None:
    """Return the mapper of the objects that a flush was writing when the error was raised, if they are all of one class.

    SQLAlchemy's error does not say it. The frames of its traceback do, and they are read only if this function is called.
    """
    for each in _held(error):
        traceback = each.__traceback__
        while traceback is not None:
            mapper = _written(traceback.tb_frame)
            if mapper is not None:
                return mapper
            traceback = traceback.tb_next
    return None


def _written(frame: FrameType) -> Mapper[Any] | None:
    if frame.f_globals.get("__name__") != "sqlalchemy.orm.persistence":
        return None
    if not frame.f_code.co_name.startswith("_emit_"):
        return None
    names = frame.f_locals
    records = names.get("records")
    mappers = {record[3] for record in records} if isinstance(records, list) else set()
    found = mappers.pop() if len(mappers) == 1 else names.get("mapper")
    return found if isinstance(found, Mapper) else None


def _entity(table: sa.Table, flushed: Mapper[Any] | None, mappers: list[Mapper[Any]]) -> type | None:
    if flushed is not None and table in flushed.tables:
        return flushed.class_
    own = [mapper for mapper in mappers if mapper.local_table is table]
    bases = [mapper for mapper in own if mapper.inherits is None or mapper.inherits.local_table is not table]
    return bases[0].class_ if len(bases) == 1 else None


def _attributes(
    table: sa.Table, columns: tuple[str, ...], flushed: Mapper[Any] | None, mappers: list[Mapper[Any]]
) -> tuple[str, ...]:
    """Return the attributes of columns, or none where one of them has none. A subclass may have the only one."""
    by_name = {column.name: column for column in table.columns}
    owners = [mapper for mapper in (flushed, *mappers) if mapper is not None and table in mapper.tables]
    found = []
    for name in columns:
        keys = (owner._columntoproperty.get(by_name[name]) for owner in owners if name in by_name)
        found.append(next((each.key for each in keys if each is not None), None))
    return tuple(key for key in found if key is not None) if None not in found else ()
