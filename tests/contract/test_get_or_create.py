"""The row with a unique key, inserted if it is not there: no race, no failed transaction, and nothing in the session is lost."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import ForeignKey, Index, Numeric, String, UniqueConstraint, event, func, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, NoResultFound
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, with_loader_criteria
from sqlalchemy.types import TypeDecorator

from sessionkit import Retry, Versioned, bulk, errors, set_rollback_only

if TYPE_CHECKING:
    from tests.support.doors import Door


class Base(DeclarativeBase):
    pass


class Lower(TypeDecorator[str]):
    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        return None if value is None else value.lower()


class Tag(Versioned, Base):
    __tablename__ = "wanted_tags"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column("label", Lower, unique=True)
    color: Mapped[str] = mapped_column(default="grey")
    hits: Mapped[int] = mapped_column(default=0)
    owner_id: Mapped[int | None] = mapped_column(ForeignKey("wanted_tags.id"))
    alias: Mapped[str | None]


class Rate(Base):
    __tablename__ = "wanted_rates"

    rate: Mapped[Decimal] = mapped_column(Numeric(6, 2), primary_key=True, autoincrement=False)


class Seat(Base):
    __tablename__ = "wanted_seats"

    row: Mapped[int] = mapped_column(primary_key=True)
    place: Mapped[int] = mapped_column(primary_key=True)
    guest: Mapped[str | None]


class Thing(Base):
    __tablename__ = "wanted_things"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    code: Mapped[str]
    shelf: Mapped[int | None]

    __table_args__: Any = (
        UniqueConstraint("code"),
        Index(
            "one_per_shelf",
            "shelf",
            unique=True,
            postgresql_where=text("kind = 'toy'"),
            sqlite_where=text("kind = 'toy'"),
        ),
    )
    __mapper_args__: Any = {"polymorphic_on": "kind", "polymorphic_identity": "thing"}  # noqa: RUF012


class Tool(Thing):
    __mapper_args__: Any = {"polymorphic_identity": "tool"}  # noqa: RUF012


class Toy(Thing):
    __mapper_args__: Any = {"polymorphic_identity": "toy"}  # noqa: RUF012


class Truck(Thing):
    __tablename__ = "wanted_trucks"

    id: Mapped[int] = mapped_column(ForeignKey("wanted_things.id"), primary_key=True)

    __mapper_args__: Any = {"polymorphic_identity": "truck"}  # noqa: RUF012


@pytest.fixture(autouse=True)
def made(doors: Door) -> None:
    async def body() -> None:
        async with doors.connect() as connection:
            await connection.run_sync(Base.metadata.create_all)
            await connection.commit()

    doors.run(body())


def getting(doors: Door) -> Any:
    return doors.twin(bulk.get_or_create, bulk.async_get_or_create)


async def test_a_new_row_has_its_key_its_defaults_and_its_first_version(doors: Door) -> None:
    get_or_create = getting(doors)
    async with doors.scope() as session:
        tag, created = await get_or_create(
            session, Tag, {"name": "Red"}, defaults={Tag.color: "red", "hits": func.abs(-3)}
        )
        assert created
        assert tag in session
        assert (tag.name, tag.color, tag.hits, tag.version_id) == ("red", "red", 3, 1)
        tag.hits = 4
    async with doors.scope() as session:
        again, created = await get_or_create(session, Tag, {"name": "RED"}, defaults={"color": "blue"})
        assert not created
        assert (again.color, again.hits, again.version_id) == ("red", 4, 2)


async def test_a_row_that_exists_costs_one_statement(doors: Door) -> None:
    get_or_create = getting(doors)
    async with doors.scope() as session:
        await get_or_create(session, Tag, {"name": "red"})
    async with doors.scope() as session:
        await session.connection()
        with doors.statements() as sent:
            await get_or_create(session, Tag, {"name": "red"})
    assert len([statement for statement in sent if statement.startswith("SELECT")]) == 1
    assert not [statement for statement in sent if statement.startswith(("SAVEPOINT", "INSERT"))]


async def test_a_key_of_several_columns_and_a_key_as_an_expression(doors: Door) -> None:
    get_or_create = getting(doors)
    async with doors.scope() as session:
        seat, created = await get_or_create(session, Seat, {Seat.row: 3, Seat.place: 4}, defaults={"guest": "ann"})
        assert created
        assert await get_or_create(session, Seat, {"place": 4, "row": 3}) == (seat, False)
        tag, created = await get_or_create(session, Tag, {"name": func.lower("GREEN")})
        assert created
        assert await get_or_create(session, Tag, {"name": "green"}) == (tag, False)
        with pytest.raises(errors.OptionError, match="NULL"):
            await get_or_create(session, Tag, {"name": func.nullif("a", "a")})


async def test_an_object_that_is_pending_is_found_and_a_loaded_one_is_refreshed(doors: Door) -> None:
    get_or_create = getting(doors)
    factory = doors.factory(autoflush=False)
    async with doors.scope(factory) as session:
        pending = Tag(name="red", color="mine")
        session.add(pending)
        assert await get_or_create(session, Tag, {"name": "red"}) == (pending, False)
        pending.hits = 7  # a change that is not flushed yet is kept
        assert (await get_or_create(session, Tag, {"name": "red"}))[0].hits == 7
    if doors.backend == "sqlite":
        return  # one writer: nothing changes underneath
    async with doors.scope(factory) as session:
        loaded = (await session.scalars(select(Tag))).one()
        await doors.write("UPDATE wanted_tags SET hits = 9")
        found, created = await get_or_create(session, Tag, {"name": "red"})
        assert (found, created, found.hits) == (loaded, False, 9)


async def test_many_at_once_get_one_row(doors: Door) -> None:
    get_or_create = getting(doors)
    factory = doors.factory()
    barrier = doors.barrier(8)
    answers: list[tuple[int, bool]] = []

    async def one() -> None:
        await barrier.wait()
        async with doors.scope(factory) as session:
            tag, created = await get_or_create(session, Tag, {"name": "red"})
            answers.append((tag.id, created))

    await doors.together(*[one for _ in range(8)])
    assert len({key for key, _ in answers}) == 1
    assert sum(created for _, created in answers) == 1
    assert await doors.scalar("SELECT count(*) FROM wanted_tags") == 1


@pytest.mark.doors(backend="postgresql")
@pytest.mark.parametrize("ends", ["commit", "rollback", "delete"])
async def test_the_second_waits_for_the_first_and_gets_its_row_or_makes_its_own(doors: Door, ends: str) -> None:
    get_or_create = getting(doors)
    factory = doors.factory()
    inserted, waiting = doors.event(), []

    async def first() -> None:
        async with doors.scope(factory) as session:
            await get_or_create(session, Tag, {"name": "red"}, defaults={"color": "first"})
            inserted.set()
            blocked = (
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
            while await doors.scalar(blocked) == 0:
                pass
            if ends == "rollback":
                set_rollback_only(doors.sync(session))

    async def second() -> None:
        await inserted.wait()
        async with doors.scope(factory) as session:
            tag, created = await get_or_create(session, Tag, {"name": "red"}, defaults={"color": "second"})
            waiting.append((tag.color, created))

    if ends == "delete":
        async with doors.scope(factory) as session:
            await get_or_create(session, Tag, {"name": "red"})
        async with doors.scope(factory) as session:
            tag, created = await get_or_create(session, Tag, {"name": "red"})
            assert not created
            await session.delete(tag)
            assert (await get_or_create(session, Tag, {"name": "red"}))[1]
        return
    await doors.together(first, second)
    assert waiting == [("first", False) if ends == "commit" else ("second", True)]


@pytest.mark.doors(backend="postgresql")
@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
async def test_above_read_committed_a_row_of_another_transaction_is_a_retryable_failure(
    doors: Door, isolation: Any
) -> None:
    get_or_create = getting(doors)
    factory = doors.factory()
    with pytest.raises(DBAPIError) as caught:
        async with doors.scope(factory, isolation=isolation) as session:
            assert (await session.scalar(select(func.count()).select_from(Tag))) == 0
            await doors.write("INSERT INTO wanted_tags (label, color, hits, version_id) VALUES ('red', 'theirs', 0, 1)")
            await get_or_create(session, Tag, {"name": "red"})
    assert errors.classify(caught.value).retryable
    runs = []

    async def body(session: Any) -> None:
        runs.append(1)
        if len(runs) == 1:
            await session.scalar(select(func.count()).select_from(Tag))
            await doors.write(
                "INSERT INTO wanted_tags (label, color, hits, version_id) VALUES ('blue', 'theirs', 0, 1)"
            )
        tag, created = await get_or_create(session, Tag, {"name": "blue"})
        assert (tag.color, created) == ("theirs", False)

    await doors.decorate(body, factory, isolation=isolation, retry=Retry(3, wait=0))()
    assert len(runs) == 2


async def test_another_constraint_that_breaks_is_an_error_and_the_session_goes_on(doors: Door) -> None:
    get_or_create = getting(doors)
    async with doors.scope() as session:
        session.add(Seat(row=1, place=1))
        with pytest.raises(IntegrityError) as caught:
            await get_or_create(session, Tag, {"name": "red"}, defaults={"owner_id": 99})
        assert errors.violation(caught.value) is not None
        assert (await get_or_create(session, Tag, {"name": "blue"}))[1]
    assert await doors.rows("SELECT label FROM wanted_tags") == [("blue",)]
    assert await doors.scalar("SELECT count(*) FROM wanted_seats") == 1


async def test_a_row_that_the_session_cannot_see_is_said_to_be_there(doors: Door) -> None:
    get_or_create = getting(doors)
    async with doors.scope() as session:
        assert (await get_or_create(session, Tool, {"code": "x"}))[0].kind == "tool"
        with pytest.raises(NoResultFound, match="cannot see it"):
            await get_or_create(session, Toy, {"code": "x"})
        await get_or_create(session, Tag, {"name": "red"})
        sync = doors.sync(session)

        @event.listens_for(sync, "do_orm_execute")
        def hide(state: Any) -> None:
            if state.is_select:
                state.statement = state.statement.options(with_loader_criteria(Tag, Tag.name != "red"))

        with pytest.raises(NoResultFound, match="with_loader_criteria"):
            await get_or_create(session, Tag, {"name": "red"})


@pytest.mark.parametrize(
    ("entity", "key", "defaults", "says"),
    [
        (Tag, {"color": "red"}, None, r"add UniqueConstraint\('color'\).*id; name"),
        (Tag, {"name": "red", "color": "red"}, None, r"add UniqueConstraint\('label', 'color'\)"),
        (Seat, {"row": 1}, None, r"add UniqueConstraint\('row'\)"),
        (Tag, {}, None, "the key is empty"),
        (Tag, {"name": None}, None, "looked up with =, which NULL never is"),
        (Tag, {"name": "red"}, {"name": "blue"}, "in key and in defaults"),
        (Tag, {"nome": "red"}, None, "did you mean 'name'"),
        (Tag, {"name": "red"}, {"colour": "blue"}, "did you mean 'color'"),
        (Tag, ["red"], None, "give a mapping"),
        (Thing, {"shelf": 1}, None, "'one_per_shelf' holds for some rows of wanted_things only"),
        (Truck, {"id": 1}, None, "joined inheritance"),
        (dict, {"id": 1}, None, "mapped classes"),
    ],
)
async def test_what_cannot_be_done_is_refused_before_any_sql(
    doors: Door, entity: Any, key: Any, defaults: Any, says: str
) -> None:
    async with doors.scope() as session:
        session.add(Seat(row=1, place=1))
        with doors.statements() as sent, pytest.raises(errors.OptionError, match=says):
            await getting(doors)(session, entity, key, defaults=defaults)
        assert sent == []


# SQLite stores a number as it is given, and asyncpg has the server round it before it looks.
@pytest.mark.doors("postgresql-sync", "postgresql-async-psycopg", "postgresql-sync-psycopg2")
async def test_a_key_that_the_database_stores_in_another_form_is_said_to_be_that(doors: Door) -> None:
    with pytest.raises(NoResultFound, match="stores the key in another form"):
        async with doors.scope() as session:
            await getting(doors)(session, Rate, {"rate": Decimal("1.005")})
    assert await doors.scalar("SELECT count(*) FROM wanted_rates") == 0
