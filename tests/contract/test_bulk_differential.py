"""Bulk leaves the database as the unit of work would: the same tables and rows go both ways, on every method."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Column, Integer, Table, cast, literal_column, select, text
from sqlalchemy import Text as SqlText
from sqlalchemy.orm import Session, registry
from sqlalchemy.orm.attributes import flag_modified
from sqlalchemy.schema import CreateSchema, DropSchema

from sessionkit import bulk
from sessionkit.errors import OptionError
from tests.contract.bulk_tables import PECULIAR, SCHEMA, SORTS, Case, cases

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Connection

    from tests.contract.bulk_tables import Sort
    from tests.support.doors import Door

METHODS = {
    ("sqlite", "insert"): ["executemany", "sqlalchemy"],
    ("sqlite", "update"): ["executemany", "sqlalchemy"],
    ("sqlite", "upsert"): ["executemany", "sqlalchemy"],
    ("sqlite", "delete"): ["executemany", "sqlalchemy"],
    ("postgresql", "insert"): ["copy", "unnest", "temp", "sqlalchemy"],
    ("postgresql", "update"): ["unnest", "temp", "sqlalchemy"],
    ("postgresql", "upsert"): ["unnest", "temp", "sqlalchemy"],
    ("postgresql", "delete"): ["unnest", "temp", "sqlalchemy"],
}
REFUSALS = ["arrays of arrays", "is SQL", "an array of hstore", "multirange; 'temp' works"]
EXTENSIONS = ["hstore", "citext"]
LONG = bool(os.environ.get("SESSIONKIT_LONG"))
CHECKS = settings(
    max_examples=250 if LONG else 20,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)


def stored(session: Session, case: Case) -> list[tuple[Any, ...]]:
    """Return what is in the table, as the database stores it: not through the types of the mapping."""
    table = case.table
    columns: list[Any] = []
    for column in table.columns:
        if column.name == "key" and column.autoincrement is not False and column is table.autoincrement_column:
            continue  # the numbers go on, whoever inserts
        if session.get_bind().dialect.name == "sqlite":
            quoted = session.get_bind().dialect.identifier_preparer.format_column(column, use_table=True)
            columns += [literal_column(quoted), literal_column(f"typeof({quoted})")]
        else:
            columns.append(cast(column, SqlText))
    rows = session.execute(select(*columns).select_from(table).where(table.c.label >= 0).order_by(table.c.label))
    return [tuple(row) for row in rows]


def both_ways(connection: Connection, case: Case, verb: str, work: Callable[..., Any]) -> None:
    """Compare what `work` leaves behind without a method (the unit of work) with what it leaves with each method."""
    case.entity.metadata = case.table.metadata
    case.table.metadata.create_all(connection)
    try:
        expected = _outcome(connection, case, partial(work, method=None))
        backend = connection.dialect.name
        for method in ["auto", *METHODS[backend, verb]]:
            found, refused = _tried(connection, case, partial(work, method=method))
            if refused is not None:
                # Of the columns whose binary form is certain only these cannot go by every way.
                assert not case.plain or any(reason in refused for reason in REFUSALS), refused
                continue
            assert found == expected, f"{method} on {connection.dialect.driver}: {case!r}"
    finally:
        case.table.metadata.drop_all(connection)
        connection.commit()


def _tried(connection: Connection, case: Case, work: Callable[[Session], Any]) -> tuple[Any, str | None]:
    """Return the outcome, or why the method refused the columns."""
    try:
        return _outcome(connection, case, work), None
    except OptionError as refused:
        return None, str(refused)


def _outcome(connection: Connection, case: Case, work: Callable[[Session], Any]) -> Any:
    with Session(connection, join_transaction_mode="create_savepoint") as session:
        # With a condition: SQLAlchemy cannot send a statement without parameters to psycopg if a name has a % in it.
        connection.execute(case.table.delete().where(case.table.c.label >= 0))
        work(session)
        session.flush()
        return stored(session, case)


def insert_both(session: Session, *, case: Case, method: str | None) -> None:
    if method is None:
        session.add_all([case.entity_from(row) for row in case.rows])
        return
    result = bulk.insert(session, case.entity, iter(case.rows), method=method, chunk=5)  # type: ignore[arg-type]
    assert result.inserted == len(case.rows)
    if method != "auto" and case.literal:
        assert result.method == method


def reference_rows(session: Session, case: Case) -> list[Any]:
    """Insert the rows of a case by the unit of work, and return the objects."""
    objects = [case.entity_from(row) for row in case.rows]
    session.add_all(objects)
    session.flush()
    return objects


async def on(doors: Door, work: Callable[[Connection], None]) -> None:
    for extension in EXTENSIONS if doors.backend == "postgresql" else ():
        # Before the engine connects, for some drivers look for hstore when they do.
        await doors.write(text(f"CREATE EXTENSION IF NOT EXISTS {extension}"))
    async with doors.connect() as connection:
        schema = doors.sync_engine.dialect.identifier_preparer.quote_identifier(SCHEMA)
        begin, end = (
            (text(rf"ATTACH '\:memory\:' AS {schema}"), text(f"DETACH {schema}"))
            if doors.backend == "sqlite"
            else (CreateSchema(SCHEMA), DropSchema(SCHEMA))
        )
        await connection.execute(begin)
        await connection.commit()
        try:
            await connection.run_sync(work)
        finally:
            await connection.rollback()
            await connection.execute(end)
            await connection.commit()


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")
async def test_an_insert_leaves_what_the_unit_of_work_would(doors: Door) -> None:
    def work(connection: Connection) -> None:
        @CHECKS
        @given(cases(doors.backend, doors.driver))
        def holds(case: Case) -> None:
            both_ways(connection, case, "insert", partial(insert_both, case=case))

        holds()

    await on(doors, work)


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")
async def test_an_update_leaves_what_the_unit_of_work_would(doors: Door) -> None:
    def work(connection: Connection) -> None:
        @CHECKS
        @given(cases(doors.backend, doors.driver))
        def holds(case: Case) -> None:
            def update(session: Session, method: str | None) -> None:
                objects = reference_rows(session, case)
                changed = [(objects[place], change) for place, change in case.changes.items()]
                if method is None:
                    for obj, change in changed:
                        for name, value in change.items():
                            setattr(obj, name, value)
                    return
                rows = [{**{name: getattr(obj, name) for name in case.key}, **change} for obj, change in changed]
                result = bulk.update(session, case.entity, rows, method=method)  # type: ignore[arg-type]
                assert result.updated == len(rows)
                if method != "auto" and rows:
                    assert result.method == method

            both_ways(connection, case, "update", update)

        holds()

    await on(doors, work)


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")
async def test_an_update_that_checks_versions_leaves_what_the_unit_of_work_would(doors: Door) -> None:
    def work(connection: Connection) -> None:
        @CHECKS
        @given(cases(doors.backend, doors.driver).filter(lambda case: case.versioned and case.changes))
        def holds(case: Case) -> None:
            def update(session: Session, method: str | None) -> None:
                objects = reference_rows(session, case)
                for place, change in case.changes.items():
                    for name, value in change.items():
                        setattr(objects[place], name, value)
                if method is None:
                    return
                with session.no_autoflush:
                    changed = [objects[place] for place in case.changes]
                    rows = [
                        {**{name: getattr(obj, name) for name in (*case.key, "version")}, **case.changes[place]}
                        for place, obj in zip(case.changes, changed, strict=True)
                    ]
                session.expunge_all()
                result = bulk.update(session, case.entity, rows, method=method, check=True)  # type: ignore[arg-type]
                assert result.checked

            both_ways(connection, case, "update", update)

        holds()

    await on(doors, work)


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")
async def test_an_upsert_leaves_what_inserts_and_updates_would(doors: Door) -> None:
    def work(connection: Connection) -> None:
        @CHECKS
        @given(cases(doors.backend, doors.driver).filter(lambda case: not case.counts_by_twos and case.literal))
        def holds(case: Case) -> None:
            there = case.rows[: len(case.rows) // 2]
            # None where there is a default is two things at once here: NULL for the update, the default for the insert.
            changed = [
                {
                    name: value
                    for name, value in {**row, **case.changes.get(place, {}), "label": row["label"]}.items()
                    if value is not None or not case.has_default(name)
                }
                for place, row in enumerate(case.rows)
            ]

            def writes(row: dict[str, Any]) -> bool:
                return bool(row.keys() - {"label", *case.key})

            def upsert(session: Session, method: str | None) -> None:
                objects = [case.entity_from(row) for row in there]
                session.add_all(objects)
                session.flush()
                if method is None:
                    for obj, row in zip(objects, changed, strict=False):
                        if not writes(row):
                            continue
                        for name, value in row.items():
                            if name not in case.key:
                                setattr(obj, name, value)
                                if name != "point":
                                    flag_modified(obj, name)  # an upsert writes also what was there already
                    session.add_all([case.entity_from(row) for row in changed[len(there) :]])
                    return
                session.expunge_all()
                result = bulk.upsert(
                    session,
                    case.entity,
                    changed,
                    match=["label"],
                    render_nulls=True,
                    status=True,
                    method=method,  # type: ignore[arg-type]
                )
                assert result.status == [
                    ("updated" if writes(row) else "unchanged") if place < len(there) else "inserted"
                    for place, row in enumerate(changed)
                ]

            both_ways(connection, case, "upsert", upsert)

        holds()

    await on(doors, work)


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")
async def test_a_delete_leaves_what_the_unit_of_work_would(doors: Door) -> None:
    def work(connection: Connection) -> None:
        @CHECKS
        @given(cases(doors.backend, doors.driver))
        def holds(case: Case) -> None:
            def delete(session: Session, method: str | None) -> None:
                objects = reference_rows(session, case)
                gone = [objects[place] for place in case.changes]
                if method is None:
                    for obj in gone:
                        session.delete(obj)
                    return
                keys = [tuple(getattr(obj, name) for name in case.key) for obj in gone]
                assert bulk.delete(session, case.entity, keys, method=method).deleted == len(gone)  # type: ignore[arg-type]

            both_ways(connection, case, "delete", delete)

        holds()

    await on(doors, work)


# One column at a time


def one_column(type_: Any, values: list[Any], *, plain: bool = True) -> Case:
    """Make a class with a column of a type, and a row for each value."""
    mapper = registry()
    table = Table(
        "one_column",
        mapper.metadata,
        Column("key", Integer, primary_key=True, autoincrement=False),
        Column("label", Integer, nullable=False, unique=True),
        Column("value", type_),
    )
    entity = type("OneColumn", (), {})
    mapper.map_imperatively(entity, table)
    rows = [{"key": place, "label": place, "value": value} for place, value in enumerate(values)]
    return Case(entity, ("key",), rows, {}, plain, literal=True, versioned=False)


async def test_each_type_is_stored_by_each_way_as_a_flush_stores_it(doors: Door) -> None:
    def work(connection: Connection) -> None:
        for sort in SORTS:
            if doors.backend in sort.backends and doors.driver not in sort.not_by:
                _check_sort(connection, sort)

    await on(doors, work)


def _check_sort(connection: Connection, sort: Sort) -> None:
    @settings(CHECKS, max_examples=100 if LONG else 3)
    @given(st.lists(sort.values | st.none(), min_size=1, max_size=12))
    def holds(values: list[Any]) -> None:
        case = one_column(sort.type(), values, plain=sort.plain)
        both_ways(connection, case, "insert", partial(insert_both, case=case))

    holds()


@pytest.mark.doors(backend="postgresql")
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")
async def test_what_drivers_send_in_ways_of_their_own_is_stored_or_refused_by_each_way_alike(doors: Door) -> None:
    def work(connection: Connection) -> None:
        wrong = []
        for make, value in PECULIAR:
            case = one_column(make(), [value])
            case.table.metadata.create_all(connection)
            expected = _stored_or_refused(connection, case, None)
            for method in METHODS["postgresql", "insert"]:
                found = _stored_or_refused(connection, case, method)
                if found != expected:
                    wrong.append(f"{value!r} as {make()!r}: {expected} by a flush, {found} by {method}")
            case.table.metadata.drop_all(connection)
            connection.commit()
        assert not wrong, "\n".join(wrong)

    await on(doors, work)


def _stored_or_refused(connection: Connection, case: Case, method: str | None) -> Any:
    try:
        found, refused = _tried(connection, case, partial(insert_both, case=case, method=method))
    except AssertionError:
        # A value that a fast path cannot express goes by SQLAlchemy, whatever was asked for.
        return _stored_or_refused(connection, case, "sqlalchemy")
    except Exception:  # noqa: BLE001 - by whom it was refused is not the question here
        return "an error"
    return found if refused is None else _stored_or_refused(connection, case, "sqlalchemy")


@pytest.mark.doors(backend="postgresql")
async def test_text_in_another_encoding_of_the_client_is_stored_as_a_flush_stores_it(doors: Door) -> None:
    def work(connection: Connection) -> None:
        case = one_column(SqlText(), ["né", "plain"])
        connection.exec_driver_sql("SET client_encoding TO 'LATIN1'")
        connection.commit()
        case.table.metadata.create_all(connection)
        expected = _stored_or_refused(connection, case, None)
        for method in METHODS["postgresql", "insert"]:
            assert _stored_or_refused(connection, case, method) == expected
        _, refused = _tried(connection, case, partial(insert_both, case=case, method="copy"))
        assert refused is not None
        assert "LATIN1" in refused
        case.table.metadata.drop_all(connection)
        connection.commit()
        connection.invalidate()

    await on(doors, work)
