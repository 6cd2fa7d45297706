"""Bulk leaves what the unit of work would, whatever shape the mapping has: inheritance, composites, computed attributes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import inspect, select
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import flag_modified

from sessionkit import bulk
from sessionkit.errors import BulkError, OptionError, VersionConflict, VersionError
from tests.contract.bulk_shapes import (
    Apart,
    Base,
    Car,
    Computed,
    Employee,
    Guest,
    Manager,
    Page,
    Person,
    Span,
    Truck,
    Van,
    Vehicle,
    XminBase,
)
from tests.contract.test_bulk_differential import CHECKS, LONG, METHODS

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Connection

    from tests.support.doors import Door

SHAPED = settings(CHECKS, max_examples=250 if LONG else 25)

_numbers = st.none() | st.integers(-9, 9)
_words = st.none() | st.text("ab'%ß", max_size=5)


class Shape(NamedTuple):
    """A class, and what its attributes can hold.

    Attributes:
        through: the classes by which its rows can be updated and deleted too.
    """

    entity: Any
    values: dict[str, st.SearchStrategy[Any]]
    through: tuple[Any, ...] = ()


SHAPES = [
    Shape(Vehicle, {"wheels": _numbers}),
    Shape(Car, {"wheels": _numbers, "doors": _numbers}, (Vehicle,)),
    Shape(Van, {"wheels": _numbers, "doors": _numbers, "load": _numbers}, (Car, Vehicle)),
    Shape(Truck, {"wheels": _numbers, "axles": _numbers}, (Vehicle,)),
    Shape(Person, {"name": _words}),
    Shape(Employee, {"name": _words, "salary": _numbers}, (Person,)),
    Shape(Manager, {"name": _words, "salary": _numbers, "team": _words}, (Employee, Person)),
    Shape(Guest, {"name": _words, "host": _words}, (Person,)),
    Shape(Apart, {"note": _words}),
    Shape(
        Computed,
        {
            "first": st.text("ab%", max_size=3),
            "surname": _words,
            "span": st.none() | st.builds(Span, st.integers(-9, 9), _numbers),
            "big": _words,
        },
    ),
]
XMIN = Shape(Page, {"text": _words})


class Plan(NamedTuple):
    """What is done with a shape."""

    shape: Shape
    rows: list[dict[str, Any]]
    through: Any
    changes: dict[int, dict[str, Any]]


@st.composite
def plans(draw: st.DrawFn, shapes: list[Shape]) -> Plan:
    shape = draw(st.sampled_from(shapes))
    rows = [
        {"label": label, **draw(st.fixed_dictionaries({}, optional=shape.values))}
        for label in range(draw(st.integers(1, 6)))
    ]
    through = draw(st.sampled_from([shape.entity, *shape.through]))
    # None for None is no change to the unit of work, which then renews what has an `onupdate`.
    known = {name: values for name, values in shape.values.items() if hasattr(through, name) and name != "load"}
    changes = {
        place: {"label": 100 + place, **draw(st.fixed_dictionaries({}, optional=known))}
        for place in draw(st.sets(st.integers(0, len(rows) - 1)))
    }
    for change in changes.values():  # NOT NULL
        for name in ("wheels",):
            if change.get(name, 0) is None:
                del change[name]
    return Plan(shape, rows, through, changes)


def refused(reason: OptionError) -> bool:
    return any(words in str(reason) for words in ("several tables", "binary form of 'version_id'", "'sqlalchemy' asks"))


def both_ways(connection: Connection, entity: Any, verb: str, work: Callable[[Session, str | None], Any]) -> None:
    """Compare what `work` leaves behind without a method (the unit of work) with what it leaves with each method."""
    expected = left_by(connection, entity, work, None)
    for method in ("auto", *METHODS[connection.dialect.name, verb]):
        try:
            found = left_by(connection, entity, work, method)
        except OptionError as reason:
            assert refused(reason), reason
            continue
        assert found == expected, method


def left_by(connection: Connection, entity: Any, work: Callable[[Session, str | None], Any], method: str | None) -> Any:
    """Return the rows of all the tables of a class without their keys, which go on; each row of a table has a parent."""
    with Session(connection, join_transaction_mode="create_savepoint") as session:
        work(session, method)
        session.flush()
        mapper = inspect(entity)
        kept = []
        for heir in mapper.base_mapper.self_and_descendants:
            joined = heir.persist_selectable
            columns = [c for table in heir.tables for c in table.c if not c.primary_key and not c.system]
            label = (
                heir.local_table.c.label if "label" in heir.local_table.c else mapper.base_mapper.local_table.c.label
            )
            query = select(*columns).select_from(joined).order_by(label).where(label >= 0)
            kept.append([tuple(row) for row in connection.execute(query)])
            for table in heir.tables:
                count = len(
                    connection.execute(select(*table.primary_key).where(*(c >= 0 for c in table.primary_key))).all()
                )
                assert table is not heir.local_table or count == len(kept[-1]), f"{table} has rows without a parent"
        return kept  # and nothing of it: the session's savepoint is rolled back


def objects_of(session: Session, entity: Any, rows: list[dict[str, Any]]) -> list[Any]:
    objects = [entity(**row) for row in rows]
    session.add_all(objects)
    session.flush()
    return objects


def write(obj: Any, change: dict[str, Any]) -> None:
    """Have the unit of work write all that is given, also what is there already."""
    for name, value in change.items():
        setattr(obj, name, value)
        if name in inspect(obj).mapper.column_attrs:
            flag_modified(obj, name)


def keys_of(objects: list[Any]) -> list[Any]:
    return [inspect(obj).identity for obj in objects]


def key_names(entity: Any) -> list[str]:
    mapper = inspect(entity)
    return [mapper.get_property_by_column(column).key for column in mapper.primary_key]


def shaped(doors: Door, *, versioned: bool = False, tables: int = 9) -> list[Shape]:
    return [
        shape
        for shape in (*SHAPES, *([XMIN] if doors.backend == "postgresql" else []))
        if (inspect(shape.entity).version_id_col is not None or not versioned)
        and len(inspect(shape.entity).tables) <= tables
    ]


async def with_tables(doors: Door, work: Callable[[Connection], None]) -> None:
    bases = [Base, *([XminBase] if doors.backend == "postgresql" else [])]
    async with doors.connect() as connection:
        for base in bases:
            await connection.run_sync(base.metadata.create_all)
        await connection.commit()
        await connection.run_sync(work)
        await connection.rollback()


pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")


async def test_an_insert_leaves_what_the_unit_of_work_would(doors: Door) -> None:
    def work(connection: Connection) -> None:
        @SHAPED
        @given(plans(shaped(doors)))
        def holds(plan: Plan) -> None:
            shape = plan.shape

            def insert(session: Session, method: str | None) -> None:
                if method is None:
                    objects_of(session, shape.entity, plan.rows)
                else:
                    keys = key_names(shape.entity)
                    result = bulk.insert(
                        session,
                        shape.entity,
                        plan.rows,
                        returning=[getattr(shape.entity, key) for key in keys] if method != "temp" else None,
                        method=method,  # type: ignore[arg-type]
                    )
                    assert result.inserted == len(plan.rows)
                    if method != "temp":
                        found = bulk.get(session, shape.entity, [tuple(row) for row in result.returned])
                        assert [obj and obj.label for obj in found] == [row["label"] for row in plan.rows]

            both_ways(connection, shape.entity, "insert", insert)

        holds()

    await with_tables(doors, work)


@pytest.mark.parametrize("check", [False, True], ids=["unchecked", "checked"])
async def test_an_update_leaves_what_the_unit_of_work_would(doors: Door, check: bool) -> None:
    def work(connection: Connection) -> None:
        @SHAPED
        @given(plans(shaped(doors, versioned=check)))
        def holds(plan: Plan) -> None:
            shape = plan.shape

            def update(session: Session, method: str | None) -> None:
                objects = objects_of(session, shape.entity, plan.rows)
                changed = {objects[place]: change for place, change in plan.changes.items()}
                if method is None:
                    for obj, change in changed.items():
                        write(obj, change)
                    return
                names = key_names(plan.through)
                versions = {obj: obj.version_id for obj in changed} if check else {}
                rows = [
                    {**dict(zip(names, inspect(obj).identity, strict=True)), **change}
                    | ({"version_id": versions[obj]} if check else {})
                    for obj, change in changed.items()
                ]
                session.expunge_all()
                result = bulk.update(session, plan.through, rows, method=method)  # type: ignore[arg-type]
                assert (result.updated, result.checked) == (len(rows), check and bool(rows))

            both_ways(connection, shape.entity, "update", update)

        holds()

    await with_tables(doors, work)


async def test_a_delete_leaves_what_the_unit_of_work_would(doors: Door) -> None:
    def work(connection: Connection) -> None:
        @SHAPED
        @given(plans(shaped(doors)))
        def holds(plan: Plan) -> None:
            shape = plan.shape

            def delete(session: Session, method: str | None) -> None:
                objects = objects_of(session, shape.entity, plan.rows)
                gone = [objects[place] for place in plan.changes]
                if method is None:
                    for obj in gone:
                        session.delete(obj)
                    return
                keys = keys_of(gone)
                session.expunge_all()
                assert bulk.delete(session, plan.through, keys, method=method).deleted == len(gone)  # type: ignore[arg-type]

            both_ways(connection, shape.entity, "delete", delete)

        holds()

    await with_tables(doors, work)


async def test_an_upsert_leaves_what_inserts_and_updates_would(doors: Door) -> None:
    def work(connection: Connection) -> None:
        @SHAPED
        @given(plans(shaped(doors, tables=1)))
        def holds(plan: Plan) -> None:
            shape = plan.shape
            half = len(plan.rows) // 2
            rows = [
                {name: value for name, value in row.items() if value is not None} | {"label": row["label"]}
                for row in plan.rows
            ]

            def upsert(session: Session, method: str | None) -> None:
                objects = objects_of(session, shape.entity, [{"label": row["label"]} for row in rows[:half]])
                if method is None:
                    for obj, row in zip(objects, rows, strict=False):
                        for name, value in row.items():
                            setattr(obj, name, value)
                    session.flush()
                    session.add_all([shape.entity(**row) for row in rows[half:]])
                    return
                session.expunge_all()
                result = bulk.upsert(
                    session,
                    shape.entity,
                    rows,
                    match=["label"],
                    when_changed=True,
                    status=True,
                    method=method,  # type: ignore[arg-type]
                )
                assert result.status[half:] == ["inserted"] * (len(rows) - half)
                assert "inserted" not in result.status[:half]

            both_ways(connection, shape.entity, "upsert", upsert)

        holds()

    await with_tables(doors, work)


async def test_a_row_of_another_class_of_the_hierarchy_is_not_found(doors: Door) -> None:
    """As a session.get() of the class would not find it."""

    def work(connection: Connection) -> None:
        for mine, other in ((Car, Truck), (Van, Car), (Guest, Employee), (Employee, Person)):
            for method in ("auto", *METHODS[doors.backend, "delete"]):
                with Session(connection, join_transaction_mode="create_savepoint") as session:
                    (alien,) = objects_of(session, other, [{"label": 1}])
                    (key,) = keys_of([alien])
                    row = {**dict(zip(key_names(mine), key, strict=True)), "label": 2}
                    try:
                        for verb, given_ in ((bulk.update, row), (bulk.delete, key)):
                            with pytest.raises(BulkError, match="there is no"):
                                verb(session, mine, [given_], method=method)  # type: ignore[arg-type]
                            assert bulk.get(session, mine, [key]) == [None]
                    except OptionError as reason:
                        assert refused(reason), reason
                    session.refresh(alien)
                    assert alien.label == 1

    await with_tables(doors, work)


async def test_a_stale_row_of_every_shape_is_a_conflict(doors: Door) -> None:
    def work(connection: Connection) -> None:
        for shape in shaped(doors):
            if inspect(shape.entity).version_id_col is None:
                continue
            for verb in (bulk.update, bulk.delete):
                with Session(connection, join_transaction_mode="create_savepoint") as session:
                    objects = objects_of(session, shape.entity, [{"label": label} for label in range(3)])
                    names = [*key_names(shape.entity), "version_id"]
                    rows = [
                        {**{name: getattr(obj, name) for name in names}, "label": obj.label + 10} for obj in objects
                    ]
                    rows[1]["version_id"] += 1
                    given_ = [{name: row[name] for name in names} for row in rows] if verb is bulk.delete else rows
                    session.expunge_all()
                    with pytest.raises(VersionConflict) as caught:
                        verb(session, shape.entity, given_)  # type: ignore[operator]
                    (conflict,) = caught.value.conflicts
                    assert (conflict.expected, conflict.current) == (rows[1]["version_id"], rows[0]["version_id"])
                    assert not conflict.deleted
                    left = session.scalars(select(shape.entity).order_by(shape.entity.label)).all()
                    assert [obj.label for obj in left] == [0, 1, 2]

    await with_tables(doors, work)


@pytest.mark.parametrize("name", ["full", "shouted"])
async def test_what_is_computed_cannot_be_written(doors: Door, name: str) -> None:
    def work(connection: Connection) -> None:
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            for verb in (bulk.insert, bulk.upsert, bulk.update):
                with pytest.raises(
                    BulkError, match=f"'{name}' of Computed is computed and cannot be written"
                ) as caught:
                    verb(session, Computed, [{"id": 1, "label": 1}, {"id": 2, "label": 2, name: "a b"}])
                assert (caught.value.position, caught.value.column) == (1, name)

    await with_tables(doors, work)


async def test_an_object_brings_what_is_computed_along_and_it_is_left_alone(doors: Door) -> None:
    def work(connection: Connection) -> None:
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            objects_of(session, Computed, [{"label": 1, "full": "a b", "span": Span(1, 2)}])
            loaded = session.scalars(select(Computed).execution_options(populate_existing=True)).one()
            assert loaded.shouted == "A"
            loaded.full, loaded.span = "c d", Span(3, None)
            with session.no_autoflush:
                rows = [loaded]
                result = bulk.update(session, Computed, rows)
            assert (result.updated, result.checked) == (1, True)
            session.expunge_all()
            again = session.scalars(select(Computed)).one()
            assert (again.shouted, again.full, again.span, again.version_id) == ("C", "c d", Span(3, None), 2)

    await with_tables(doors, work)


@pytest.mark.doors(backend="postgresql")
async def test_the_version_that_postgresql_makes_is_never_written(doors: Door) -> None:
    def work(connection: Connection) -> None:
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            for method in ("auto", *METHODS["postgresql", "insert"]):
                bulk.insert(session, Page, [{"label": 5, "version_id": 3}, {"label": 6}], method=method)  # type: ignore[arg-type]
                assert (
                    bulk.upsert(session, Page, [{"label": 5, "version_id": 9, "text": "t"}], match=["label"]).updated
                    == 1
                )
                versions = set(session.scalars(select(Page.version_id)))
                assert versions.isdisjoint({3, 9})
                session.execute(Page.__table__.delete())  # type: ignore[attr-defined]

    await with_tables(doors, work)


@pytest.mark.doors(backend="sqlite")
async def test_a_class_with_postgresqls_version_is_refused_before_anything_is_sent(doors: Door) -> None:
    def work(connection: Connection) -> None:
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            for verb, row in (
                (bulk.update, {"id": 1, "version_id": 3, "text": "t"}),
                (bulk.delete, {"id": 1, "version_id": 3}),
            ):
                with pytest.raises(VersionError, match="XminVersioned was used on sqlite"):
                    verb(session, Page, [row])  # type: ignore[operator]

    await with_tables(doors, work)
