"""Which constraint an error reports: the same answer on every driver, for what a mapping has and for what only the database has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
from sqlalchemy import CheckConstraint, ForeignKey, Index, MetaData, UniqueConstraint, func, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sessionkit import bulk, errors
from sessionkit.errors import Violation, violation

if TYPE_CHECKING:
    from tests.support.doors import Door


class Base(DeclarativeBase):
    pass


class Conventional(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Member(Base):
    __tablename__ = "violated_members"

    id: Mapped[int] = mapped_column(primary_key=True)
    mail: Mapped[str] = mapped_column("e_mail", unique=True)
    first: Mapped[str] = mapped_column(default="ann")
    last: Mapped[str] = mapped_column(default="lee")
    age: Mapped[int] = mapped_column(CheckConstraint("age > 0"), default=30)
    badge: Mapped[int | None]

    __table_args__: Any = (
        UniqueConstraint("first", "last"),
        CheckConstraint("age < 200", name="not_so_old"),
        CheckConstraint(sa.column("badge") > 0),
        Index(
            "one_chief",
            "last",
            unique=True,
            postgresql_where=text("first = 'chief'"),
            sqlite_where=text("first = 'chief'"),
        ),
    )


class Folded(Base):
    __tablename__ = "violated_folded"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]

    __table_args__: Any = (Index("folded_name", func.lower(text("name")), unique=True),)


class House(Conventional):
    __tablename__ = "violated_houses"

    id: Mapped[int] = mapped_column(primary_key=True)


class Room(Conventional):
    __tablename__ = "violated_rooms"

    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(unique=True)
    house_id: Mapped[int] = mapped_column(ForeignKey("violated_houses.id"))
    beds: Mapped[int] = mapped_column(default=1)

    __table_args__: Any = (CheckConstraint("beds > 0", name="beds"),)


class Worker(Base):
    __tablename__ = "violated_workers"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    code: Mapped[str] = mapped_column(unique=True)

    __mapper_args__: Any = {"polymorphic_on": "kind", "polymorphic_identity": "worker"}  # noqa: RUF012


class Welder(Worker):
    __tablename__ = "violated_welders"

    id: Mapped[int] = mapped_column(ForeignKey("violated_workers.id"), primary_key=True)
    torch: Mapped[str] = mapped_column(unique=True)

    __mapper_args__: Any = {"polymorphic_identity": "welder"}  # noqa: RUF012


class Manager(Worker):
    desk: Mapped[int | None] = mapped_column(unique=True)

    __mapper_args__: Any = {"polymorphic_identity": "manager"}  # noqa: RUF012


class Odd(Base):
    __tablename__ = "violated, odd.ly"

    id: Mapped[int] = mapped_column(primary_key=True)
    a: Mapped[int] = mapped_column("co, l.umn")
    b: Mapped[int]

    __table_args__: Any = (UniqueConstraint("co, l.umn", "b"),)


class Long(Base):
    __tablename__ = "violated_" + "long_" * 10

    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int] = mapped_column("column_" * 5, unique=True)


@pytest.fixture(autouse=True)
def made(doors: Door) -> None:
    async def body() -> None:
        async with doors.connect() as connection:
            await connection.run_sync(Base.metadata.create_all)
            await connection.run_sync(Conventional.metadata.create_all)
            await connection.commit()

    doors.run(body())


async def failed(doors: Door, *objects: Any) -> IntegrityError:
    """Flush objects one after the other, and return the error that ends the unit."""
    with pytest.raises(IntegrityError) as caught:
        async with doors.scope() as session:
            for each in objects:
                session.add(each)
                await session.flush()
                session.expunge_all()
    return caught.value


def schema(doors: Door) -> str | None:
    return "public" if doors.backend == "postgresql" else None


def on(doors: Door, postgresql: Any, sqlite: Any) -> Any:
    return postgresql if doors.backend == "postgresql" else sqlite


@pytest.mark.parametrize(
    ("objects", "kind", "columns", "attributes", "names"),
    [
        (
            [{"id": 1, "mail": "a"}, {"id": 1, "mail": "b", "first": "bob"}],
            "unique",
            ["id"],
            ["id"],
            ("violated_members_pkey", None),
        ),
        (
            [{"mail": "a"}, {"mail": "a", "first": "bob"}],
            "unique",
            ["e_mail"],
            ["mail"],
            ("violated_members_e_mail_key", None),
        ),
        (
            [{"mail": "a"}, {"mail": "b"}],
            "unique",
            ["first", "last"],
            ["first", "last"],
            ("violated_members_first_last_key", None),
        ),
        ([{}], "not_null", ["e_mail"], ["mail"], (None, None)),
        ([{"mail": "a", "age": 0}], "check", ["age"], ["age"], ("violated_members_age_check", None)),
        ([{"mail": "a", "age": 900}], "check", [], [], ("not_so_old", "not_so_old")),
    ],
)
async def test_a_constraint_is_known_by_its_columns_whether_it_has_a_name_or_not(
    doors: Door,
    objects: Any,
    kind: Any,
    columns: list[str],
    attributes: list[str],
    names: tuple[str | None, str | None],
) -> None:
    error = await failed(doors, *[Member(**each) for each in objects])
    expected = Violation(
        kind, Member.__tablename__, schema(doors), on(doors, *names), tuple(columns), tuple(attributes), Member
    )
    assert violation(error) == expected
    assert error.orig is not None
    bare = violation(error.orig)
    assert bare is not None
    assert (bare.kind, bare.columns, bare.attributes, bare.entity) == (kind, tuple(columns), tuple(attributes), Member)


async def test_a_partial_index_and_one_over_an_expression_are_named(doors: Door) -> None:
    async with doors.connect() as connection:
        dropped = "ALTER TABLE violated_members DROP CONSTRAINT violated_members_first_last_key"
        if doors.backend == "postgresql":
            await connection.execute(text(dropped))
            await connection.commit()
    chiefs = [Member(mail=mail, first="chief", last="lee") for mail in "ab"]
    found = violation(await failed(doors, *chiefs))
    assert found is not None
    # SQLite has kept the constraint above, and reports one of the two.
    assert found.constraint == "one_chief" or doors.backend == "sqlite"
    found = violation(await failed(doors, Folded(name="Ann"), Folded(name="ANN")))
    assert found == Violation("unique", Folded.__tablename__, schema(doors), "folded_name", (), (), Folded)


async def test_a_naming_convention_gives_the_name(doors: Door) -> None:
    for objects, kind, column, name in (
        (
            [House(id=1), Room(number=1, house_id=1), Room(number=1, house_id=1)],
            "unique",
            "number",
            "uq_violated_rooms_number",
        ),
        ([House(id=1), Room(number=1, house_id=1, beds=0)], "check", None, "ck_violated_rooms_beds"),
    ):
        columns = () if column is None else (column,)
        expected = Violation(kind, "violated_rooms", schema(doors), name, columns, columns, Room)  # type: ignore[arg-type]
        assert violation(await failed(doors, *objects)) == expected


async def test_a_foreign_key_is_that_of_the_table_that_refers(doors: Door) -> None:
    known = Violation(
        "foreign_key", "violated_rooms", "public", "fk_violated_rooms_house_id", ("house_id",), ("house_id",), Room
    )
    expected = on(doors, known, Violation("foreign_key"))
    assert violation(await failed(doors, Room(number=1, house_id=7))) == expected
    async with doors.scope() as session:
        session.add(House(id=1))
        await session.flush()
        session.add(Room(number=1, house_id=1))
    with pytest.raises(IntegrityError) as caught:
        async with doors.scope() as session:
            await session.delete(await session.get_one(House, 1))
    assert violation(caught.value) == expected


async def test_the_entity_is_the_class_whose_flush_failed(doors: Door) -> None:
    for objects, table, attribute, entity in (
        ([Welder(code="a", torch="t"), Welder(code="a", torch="u")], "violated_workers", "code", Welder),
        ([Welder(code="a", torch="t"), Welder(code="b", torch="t")], "violated_welders", "torch", Welder),
        ([Manager(code="a", desk=1), Manager(code="b", desk=1)], "violated_workers", "desk", Manager),
    ):
        found = violation(await failed(doors, *objects))
        assert found is not None
        assert (found.table, found.attributes, found.entity) == (table, (attribute,), entity)


async def test_outside_of_a_flush_the_entity_is_the_base_class_of_the_table(doors: Door) -> None:
    rows = [{"kind": "manager", "code": code, "desk": 1} for code in "ab"]
    with pytest.raises(IntegrityError) as caught:
        async with doors.scope() as session:
            await session.execute(sa.insert(Worker.__table__), rows)
    found = violation(caught.value)
    assert found is not None
    assert (found.attributes, found.entity) == (("desk",), Worker)


async def test_names_with_dots_and_commas_are_taken_apart_and_long_ones_are_found(doors: Door) -> None:
    found = violation(await failed(doors, Odd(a=1, b=1), Odd(a=1, b=1)))
    assert found is not None
    assert (found.columns, found.attributes, found.entity) == (("co, l.umn", "b"), ("a", "b"), Odd)
    found = violation(await failed(doors, Long(value=1), Long(value=1)))
    assert found is not None
    assert (found.attributes, found.entity) == (("value",), Long)


async def test_bulk_errors_and_rejected_rows_hold_one(doors: Door) -> None:
    insert = doors.twin(bulk.insert, bulk.async_insert)
    rows = [{"mail": "a"}, {"mail": "a", "first": "bob"}]
    with pytest.raises(errors.BulkError) as caught:
        async with doors.scope() as session:
            await insert(session, Member, rows)
    async with doors.scope() as session:
        result = await insert(session, Member, rows, on_error="collect")
    for error in (caught.value, result.rejected[0].error):
        found = violation(error)
        assert found is not None
        assert (found.kind, found.attributes, found.entity) == ("unique", ("mail",), Member)


async def test_an_error_raised_from_one_holds_it_and_one_that_is_not_a_violation_holds_none(doors: Door) -> None:
    error = await failed(doors, Member())
    try:
        raise LookupError("no such mail") from error
    except LookupError as around:
        found = violation(around)
    assert found is not None
    assert found.kind == "not_null"
    with pytest.raises(errors.UnexpectedRollback) as swallowed:
        async with doors.scope() as session:
            session.add(Member())
            with pytest.raises(IntegrityError):
                await session.flush()
    found = violation(swallowed.value)
    assert found is not None
    assert found.kind == "not_null"
    assert violation(ValueError("a bug")) is None
    group = violation(ExceptionGroup("several", [ValueError("a bug"), error]))
    assert group is not None
    assert group.kind == "not_null"
    try:
        try:
            raise error
        except IntegrityError:
            raise LookupError("of its own")  # noqa: B904 - that is the case
    except LookupError as other:
        assert violation(other) is None
    with pytest.raises(sa.exc.DBAPIError) as missing:
        async with doors.scope() as session:
            await session.execute(text("SELECT * FROM nowhere"))
    assert violation(missing.value) is None


async def test_the_catalogue_knows_an_index_that_no_mapping_has(doors: Door) -> None:
    async with doors.connect() as connection:
        await connection.execute(text("CREATE UNIQUE INDEX only_here ON violated_rooms (beds)"))
        await connection.commit()
    error = await failed(doors, House(id=1), Room(number=1, house_id=1), Room(number=2, house_id=1))
    found = violation(error)
    assert found is not None
    assert (found.constraint, found.columns) == on(doors, ("only_here", ()), (None, ("beds",)))
    async with doors.connect() as connection:
        found = await connection.run_sync(lambda sync: violation(error, sync))
    assert found == Violation("unique", "violated_rooms", schema(doors), "only_here", ("beds",), ("beds",), Room)


@pytest.mark.doors(backend="postgresql")  # SQLite defers foreign keys only, and says nothing of them
async def test_a_constraint_that_is_checked_at_commit_is_found_like_any_other(doors: Door) -> None:
    deferred = "ALTER TABLE violated_rooms ALTER CONSTRAINT fk_violated_rooms_house_id DEFERRABLE INITIALLY DEFERRED"
    async with doors.connect() as connection:
        await connection.execute(text(deferred))
        await connection.commit()
    with pytest.raises(IntegrityError) as caught:
        async with doors.scope() as session:
            session.add(Room(number=1, house_id=7))
            await session.flush()
    found = violation(caught.value)
    assert found is not None
    assert (found.kind, found.attributes, found.entity) == ("foreign_key", ("house_id",), Room)


async def test_no_statement_is_sent_without_a_bind(doors: Door) -> None:
    error = await failed(doors, Member())
    with doors.statements() as sent:
        violation(error)
    assert sent == []


async def test_a_bind_that_cannot_be_asked_is_refused(doors: Door) -> None:
    error = await failed(doors, Member())
    with pytest.raises(errors.OptionError, match="give it an engine or a connection"):
        violation(error, "postgresql:///shop")  # type: ignore[arg-type]
    if doors.colour == "async":
        with pytest.raises(errors.SyncAsyncMismatch, match="run_sync"):
            violation(error, doors.engine)


@pytest.mark.doors(backend="postgresql")
async def test_a_row_that_no_partition_takes_violates_no_constraint(doors: Door) -> None:
    async with doors.connect() as connection:
        await connection.execute(text("CREATE TABLE violated_parts (id int) PARTITION BY RANGE (id)"))
        await connection.commit()
    with pytest.raises(sa.exc.DBAPIError) as caught:
        async with doors.scope() as session:
            await session.execute(text("INSERT INTO violated_parts VALUES (1)"))
    assert violation(caught.value) is None
