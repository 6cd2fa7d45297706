"""The recipes that users write today, word for word but for the imports, work with sessionkit's classes."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Column, DateTime, ForeignKey, Integer, String
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import declarative_base

import sessionkit
from sessionkit import errors, scoped_session, sessionmaker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.doors import Door

pytestmark = pytest.mark.doors("sqlite-sync", "postgresql-sync", "postgresql-sync-psycopg2")

Base: Any = declarative_base()


class User(Base):  # type: ignore[misc]
    __tablename__ = "seed_users"

    id = Column(Integer, primary_key=True)
    name = Column(String(50), unique=True)
    email = Column(String(100))
    updated_at = Column(DateTime, default=datetime.now, onupdate=datetime.now)


class Address(Base):  # type: ignore[misc]
    __tablename__ = "seed_addresses"

    id = Column(Integer, primary_key=True)
    email = Column(String(100))
    user_id = Column(Integer, ForeignKey("seed_users.id"))


@pytest.fixture
def engine(doors: Door) -> Any:
    Base.metadata.create_all(doors.engine)
    return doors.engine


async def names(doors: Door) -> list[str]:
    return [name for (name,) in await doors.rows("SELECT name FROM seed_users ORDER BY id")]


async def test_creating_sessions_and_their_lifecycle(doors: Door, engine: Any) -> None:
    Session = sessionmaker(bind=engine)
    session = Session()

    try:
        # 2. Add/modify objects
        new_user = User(name='Alice', email='alice@example.com')  # fmt: skip
        session.add(new_user)

        # 3. Commit transaction
        session.commit()
    except:
        # 4. Rollback on error
        session.rollback()
        raise
    finally:
        # 5. Close session
        session.close()

    assert isinstance(session, sessionkit.Session)
    assert await names(doors) == ["Alice"]


async def test_the_lifecycle_when_it_fails(doors: Door, engine: Any) -> None:
    Session = sessionmaker(bind=engine)
    user1, user2 = User(name="same"), User(name="same")
    session = Session()
    with pytest.raises(IntegrityError):
        try:
            session.add(user1)
            session.add(user2)
            session.commit()
        except:
            session.rollback()  # Undo all changes
            raise
    session.close()
    assert await names(doors) == []


async def test_the_hand_written_session_scope(doors: Door, engine: Any) -> None:
    Session = sessionmaker(bind=engine)

    @contextmanager
    def session_scope() -> Iterator[Any]:
        session = Session()
        try:
            yield session
            session.commit()
        except:
            session.rollback()
            raise
        finally:
            session.close()

    # Usage
    with session_scope() as session:
        user = User(name='Bob')  # fmt: skip
        session.add(user)

    assert await names(doors) == ["Bob"]
    with pytest.raises(LookupError):
        with session_scope() as session:
            session.add(User(name="lost"))
            raise LookupError
    assert await names(doors) == ["Bob"]


async def test_a_scope_of_the_factory_is_a_drop_in_for_it(doors: Door, engine: Any) -> None:
    Session = sessionmaker(bind=engine)
    session_scope = Session.scope

    with session_scope() as session:
        user = User(name="Bob")
        session.add(user)

    assert user.name == "Bob"
    assert await names(doors) == ["Bob"]


async def test_custom_session_settings(doors: Door, engine: Any) -> None:
    Session = sessionmaker(
        bind=engine,
        autocommit=False,        # Explicit commits
        autoflush=False,         # Manual flushing
        expire_on_commit=False   # Objects don't expire after commit
    )  # fmt: skip
    session = Session()
    assert session.autoflush is False
    assert session.expire_on_commit is False
    session.add(User(name="Alice"))
    assert session.query(User).all() == []
    session.commit()
    session.close()
    assert await names(doors) == ["Alice"]


async def test_autocommit_gets_an_error_that_says_what_to_write_instead(doors: Door, engine: Any) -> None:
    for make in (
        lambda: sessionmaker(bind=engine, autocommit=True),
        lambda: sessionmaker(engine).configure(autocommit=True),
    ):
        with pytest.raises(errors.OptionError, match=r"autocommit=True.*scope.*isolation_level='AUTOCOMMIT'"):
            make()
    assert doors.checked_out() == 0


async def test_flushing(doors: Door, engine: Any) -> None:
    Session = sessionmaker(bind=engine)
    session = Session()
    user = User(name='Alice')  # fmt: skip
    session.add(user)
    session.flush()  # Syncs to database, but transaction still open
    assert user.id is not None  # ID is now available
    assert await names(doors) == []
    session.commit()  # Actually commits the transaction
    session.close()
    assert await names(doors) == ["Alice"]


async def test_optimistic_concurrency_by_a_date(doors: Door, engine: Any) -> None:
    Session = sessionmaker(bind=engine)
    with Session() as session:
        session.add(User(id=1, name="Old Name"))
        session.commit()
        # Check for concurrent updates
        user = session.query(User).filter_by(id=1).first()
        assert user is not None
        old_updated_at = user.updated_at
        user.name = 'New Name'  # type: ignore[assignment] # fmt: skip
        session.commit()
        assert user.updated_at != old_updated_at


@pytest.mark.parametrize("level", ["READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
async def test_isolation_levels_by_a_connection(doors: Door, engine: Any, level: str) -> None:
    if doors.backend == "sqlite" and level in {"READ COMMITTED", "REPEATABLE READ"}:
        level = "READ UNCOMMITTED"  # SQLite's driver has no others
    Session = sessionmaker(bind=engine, autocommit=False, autoflush=False)

    # Set isolation level
    connection = engine.connect()
    connection = connection.execution_options(isolation_level=level)
    session = Session(bind=connection)
    assert session.connection().get_isolation_level() == level
    session.add(User(name="Alice"))
    session.commit()
    session.close()
    connection.close()
    assert await names(doors) == ["Alice"]


async def test_bulk_insert_and_update(doors: Door, engine: Any) -> None:
    Session = sessionmaker(bind=engine)
    session = Session()
    session.bulk_save_objects([
        User(name='User1'),
        User(name='User2'),
        User(name='User3')
    ])  # fmt: skip
    session.commit()
    session.bulk_update_mappings(User, [
        {'id': 1, 'name': 'Updated User1'},
        {'id': 2, 'name': 'Updated User2'}
    ])  # fmt: skip
    session.commit()
    session.close()
    assert await names(doors) == ["Updated User1", "Updated User2", "User3"]


async def test_bulk_insert_and_update_in_a_scope(doors: Door, engine: Any) -> None:
    Session = sessionmaker(bind=engine)
    with Session.scope() as session:
        session.bulk_save_objects([User(name="User1"), User(name="User2")])
        session.bulk_update_mappings(User, [{"id": 1, "name": "Updated User1"}])
    assert await names(doors) == ["Updated User1", "User2"]


@pytest.mark.doors(backend="sqlite")
async def test_binding_to_several_engines(doors: Door, engine: Any) -> None:
    engine1, engine2 = engine, doors.other_engine(foreign_keys=False)
    Base.metadata.create_all(engine2)
    Session = sessionmaker(binds={
        User: engine1,
        Address: engine2
    })  # fmt: skip
    session = Session()
    session.add_all([User(name="Alice"), Address(email="a@x")])
    session.commit()
    session.close()
    with Session.scope() as session:
        session.add_all([User(name="Bob"), Address(email="b@x")])
        assert session.query(Address).count() == 2
    assert await names(doors) == ["Alice", "Bob"]
    assert await doors.rows("SELECT email FROM seed_addresses") == []
    with sessionmaker(engine2)() as session:
        assert [a.email for a in session.query(Address)] == ["a@x", "b@x"]


async def test_scoped_sessions(doors: Door, engine: Any) -> None:
    session_factory = sessionmaker(bind=engine)
    Session = scoped_session(session_factory)

    # Usage
    session = Session()
    assert Session() is session
    session.add(User(name="Alice"))
    Session.commit()
    assert Session.query(User).count() == 1
    Session.remove()  # Clean up
    assert Session() is not session
    Session.remove()
    assert await names(doors) == ["Alice"]


async def test_scoped_sessions_are_thread_local(doors: Door, engine: Any) -> None:
    Session = scoped_session(sessionmaker(bind=engine))
    mine = Session()
    others: list[Any] = []

    def work() -> None:
        others.append(Session())
        Session.add(User(name=threading.current_thread().name))
        Session.commit()
        Session.remove()

    threads = [threading.Thread(target=work, name=f"worker {number}") for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(session) for session in [*others, mine]}) == 5
    assert sorted(await names(doors)) == [f"worker {number}" for number in range(4)]
    Session.remove()
