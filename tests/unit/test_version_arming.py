"""What versions cost where there are none, and that they miss no flush that can write a versioned row."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from textwrap import dedent
from typing import Any

import pytest
from sqlalchemy import Engine, ForeignKey, create_engine, event, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from sessionkit import TimestampVersioned, VersionConflict, Versioned, expect_version
from sessionkit.version import _flush


def answer_of(program: str) -> str:
    """Return what a program prints in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", dedent(program)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


LISTENERS = """
    from sqlalchemy import Engine, Pool
    from sqlalchemy.orm import Mapper, Session, DeclarativeBase, Mapped, mapped_column

    def listeners():
        return {
            f"{cls.__name__}.{name}": len(found)
            for cls in (Session, Mapper, Engine, Pool)
            for name in cls.dispatch._event_names
            if (found := list(getattr(cls.dispatch, name)._clslevel.get(cls, ())))
        }

    before = listeners()

    def print_new():
        print({name: count - before.get(name, 0) for name, count in listeners().items() if count != before.get(name, 0)})
"""


@pytest.mark.parametrize("names", ["import sessionkit", "from sessionkit import *"])
def test_no_class_of_sqlalchemy_has_a_listener_before_a_versioned_class_is_mapped(names: str) -> None:
    assert answer_of(f"{dedent(LISTENERS)}\n{names}\nprint_new()") == "{}"


def test_the_first_versioned_class_adds_the_listeners_once() -> None:
    versioned = """
    from threading import Thread
    from sessionkit import Versioned

    def map_one(number):
        class Base(DeclarativeBase):
            pass

        class A(Versioned, Base):
            __tablename__ = "a"
            id: Mapped[int] = mapped_column(primary_key=True)

    threads = [Thread(target=map_one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print_new()
    """
    assert eval(answer_of(dedent(LISTENERS) + dedent(versioned))) == {
        "Session.do_orm_execute": 1,
        "Session.after_commit": 1,
        "Session.after_soft_rollback": 1,
        "Session.after_flush": 1,
        "Session.before_flush": 1,
        "Mapper.after_configured": 1,
    }


CALLS = """
    import sys
    from sqlalchemy import create_engine, select
    from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

    class Base(DeclarativeBase):
        pass

    class User(Base):
        __tablename__ = "users"
        id: Mapped[int] = mapped_column(primary_key=True)

    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    factory = sessionmaker(engine)

    def work():
        with factory.begin() as session:
            for _ in range(10):
                session.execute(select(User)).all()
            session.add(User())

    calls = 0

    def count(frame, what, argument):
        global calls
        calls += what == "call"

    for _ in range(3):
        work()
    sys.setprofile(count)
    work()
    sys.setprofile(None)
    print(calls)
"""


@pytest.mark.parametrize("names", ["import sessionkit", "from sessionkit import *"])
def test_a_plain_session_makes_the_same_calls_with_and_without_sessionkit(names: str) -> None:
    assert answer_of(f"{names}\n{dedent(CALLS)}") == answer_of(CALLS)


class Base(DeclarativeBase):
    pass


class Plain(Base):
    """Has nothing to do with versions."""

    __tablename__ = "plain"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(default="")


class Parent(Base):
    """Has no version, and a collection of objects that do, of which they do not know."""

    __tablename__ = "parents"
    id: Mapped[int] = mapped_column(primary_key=True)
    children: Mapped[list[Child]] = relationship()


class Child(TimestampVersioned, Base):
    __tablename__ = "children"
    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("parents.id"))


class Country(Base):
    """Its key can change, and is carried to the cities."""

    __tablename__ = "countries"
    code: Mapped[str] = mapped_column(primary_key=True)


class City(Versioned, Base):
    __tablename__ = "cities"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(default="")
    country_code: Mapped[str] = mapped_column(ForeignKey("countries.code"))
    country: Mapped[Country] = relationship(passive_updates=False)


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add_all([Plain(id=1), Parent(id=1, children=[Child(id=1)]), Country(code="at")])
        session.add(City(id=1, country_code="at"))
    yield engine
    engine.dispose()


@pytest.fixture
def watched() -> Iterator[list[bool]]:
    """For each flush, whether it is watched."""
    seen: list[bool] = []

    def look(session: Session, flush: Any) -> None:
        seen.append(isinstance(flush, _flush._Flush))

    event.listen(Session, "after_flush", look)
    try:
        yield seen
    finally:
        event.remove(Session, "after_flush", look)


def test_a_flush_that_cannot_write_a_version_is_not_watched(engine: Engine, watched: list[bool]) -> None:
    with Session(engine) as session:
        session.add(Plain(id=2))
        session.flush()
        session.add(City(id=2, country_code="at"))
        session.flush()
    assert watched == [False, True]


def test_a_flush_of_a_parent_without_a_version_finds_its_stale_children(engine: Engine) -> None:
    with Session(engine) as session:
        parent = session.get_one(Parent, 1)
        (child,) = parent.children
        session.execute(update(Child.__table__).values(updated_at=child.updated_at.replace(year=2000)))
        parent.children.remove(child)
        assert child not in session.dirty
        with pytest.raises(VersionConflict, match="Child 1"):
            session.flush()


def test_a_key_that_changes_finds_the_stale_rows_that_point_to_it(engine: Engine) -> None:
    with Session(engine) as session:
        country, city = session.get_one(Country, "at"), session.get_one(City, 1)
        session.execute(update(City.__table__).values(version_id=7))
        country.code = "be"
        assert city not in session.dirty
        with pytest.raises(VersionConflict, match="City 1"):
            session.flush()


def test_what_a_later_listener_adds_to_the_flush_is_checked(engine: Engine, watched: list[bool]) -> None:
    with Session(engine) as session:
        city = session.get_one(City, 1)
        session.execute(update(City.__table__).values(version_id=7))

        @event.listens_for(session, "before_flush")
        def change(*_: object) -> None:
            city.name = "changed"

        session.add(Plain(id=2))
        with pytest.raises(VersionConflict, match="City 1"):
            session.flush()


def test_a_class_that_is_mapped_later_makes_its_parent_watched(engine: Engine, watched: list[bool]) -> None:
    class Late(DeclarativeBase):
        pass

    class Owner(Late):
        __tablename__ = "owners"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(default="")

    Late.metadata.create_all(engine)
    with Session(engine) as session:
        owner = Owner(id=1)
        session.add(owner)
        session.flush()

        class Pet(Versioned, Late):
            __tablename__ = "pets"
            id: Mapped[int] = mapped_column(primary_key=True)
            owner_id: Mapped[int] = mapped_column(ForeignKey("owners.id"))
            owner: Mapped[Owner] = relationship(backref="pets")

        Late.metadata.create_all(session.connection())
        Pet()
        owner.name = "x"
        session.flush()
    assert watched == [False, True]


def test_a_savepoint_that_a_failed_flush_undid_made_no_version(engine: Engine) -> None:
    """SQLAlchemy names only the flush as rolled back, and closes the savepoint without a word."""
    with Session(engine, autoflush=False) as session:
        city = session.get_one(City, 1)
        expect_version(city, 1)
        with session.begin_nested():
            city.name = "ours"
            session.flush()
            session.add(Plain(id=1))
            with pytest.raises(Exception, match=r"UNIQUE|conflicts"):
                session.flush()
        # The number that ours had is a rival's now.
        session.execute(update(City.__table__).values(version_id=2, name="theirs"))
        session.expire(city)
        city.name = "ours again"
        with pytest.raises(VersionConflict):
            session.flush()


def test_nothing_of_a_session_is_kept_alive_by_what_it_remembers(engine: Engine) -> None:
    import gc
    from weakref import ref

    gc.disable()
    try:
        with Session(engine) as session:
            city = session.get_one(City, 1)
            expect_version(city, 1)
            city.name = "ours"
            session.flush()
            seen = [ref(city), ref(session.get_transaction())]
            session.rollback()
            del city
        assert session.info
        assert [each() for each in seen] == [None, None]
    finally:
        gc.enable()
