"""What people who had only the documentation found: small programs of users that lost something, or were told something wrong."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import StaticPool, create_engine, orm, select, text
from sqlalchemy.exc import IntegrityError

from sessionkit import errors, on_commit, sessionmaker
from tests.contract.breaking import names, take
from tests.support.models import Base, User

if TYPE_CHECKING:
    from tests.support.doors import Door

pytestmark = pytest.mark.above_drivers


class Planned(Exception):
    pass


def connects(engine: Any) -> None:
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))


def opens_a_session(engine: Any) -> None:
    with orm.Session(engine) as session:
        session.scalar(text("SELECT 1"))


@pytest.mark.sqlite
@pytest.mark.parametrize("other", [connects, opens_a_session])
@pytest.mark.parametrize("pool", [{}, {"poolclass": StaticPool}], ids=["default pool", "StaticPool"])
def test_work_that_somebody_else_rolled_back_on_the_one_connection_does_not_pass_for_committed(
    other: Any, pool: dict[str, Any]
) -> None:
    """Giving the connection back rolls it back; what follows would be committed alone."""
    engine = create_engine("sqlite://", **pool)
    Base.metadata.create_all(engine)
    Session = sessionmaker(engine)
    ran: list[None] = []
    with pytest.raises(errors.UnexpectedRollback, match="one connection"):
        with Session.scope() as session:
            on_commit(lambda: ran.append(None))
            session.add(User(name="first"))
            session.flush()
            other(engine)
            session.add(User(name="second"))
    with Session.scope() as session:
        assert session.scalars(select(User.name)).all() == []
    assert ran == []
    engine.dispose()


async def test_a_generator_that_is_closed_says_that_work_of_others_goes_with_it(doors: Door) -> None:
    """While it is suspended its scope is the ambient one, and what its consumer does joins it."""

    async def owners() -> Any:
        async with doors.scope() as session:
            yield session

    generator = owners()
    await generator.asend(None)
    async with doors.scope() as session:
        session.add(User(name="ann"))
    with pytest.warns(RuntimeWarning, match="closed before its end"):
        await generator.aclose()
    del generator
    gc.collect()
    assert await names(doors) == []


async def test_a_savepoint_scope_that_swallowed_an_error_is_refused_alike_with_something_pending(doors: Door) -> None:
    await take(doors)
    async with doors.scope() as session:
        with pytest.raises(errors.UnexpectedRollback) as caught:
            async with doors.scope(propagation="savepoint") as inner:
                with pytest.raises(IntegrityError):
                    await inner.execute(text("INSERT INTO users (name) VALUES ('taken')"))
                inner.add(User(name="bob"))
        assert isinstance(caught.value.__cause__, IntegrityError)
        session.add(User(name="ann"))
    assert await names(doors) == ["ann"]


async def test_an_exception_that_does_not_roll_back_says_where_it_did(doors: Door) -> None:
    await take(doors)
    with pytest.raises(Planned) as caught:
        async with doors.scope(no_rollback_for=Planned) as session:
            session.add(User(name="ann"))
            await session.flush()
            with pytest.raises(IntegrityError):
                await session.execute(text("INSERT INTO users (name) VALUES ('taken')"))
            raise Planned
    assert errors.outcome_of(caught.value) == "rolled back"
    assert "despite no_rollback_for" in caught.value.__notes__[0]
    assert await names(doors) == []


async def test_an_interrupt_in_a_hook_tells_that_the_data_is_committed(doors: Door) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        async with doors.scope() as session:
            session.add(User(name="ann"))
            on_commit(interrupt)
    assert errors.outcome_of(caught.value) == "committed"
    assert await names(doors) == ["ann"]


@pytest.mark.parametrize("method", ["commit", "rollback"])
async def test_a_commit_by_hand_in_a_read_only_scope_lets_it_stay_read_only_and_the_unit_go_on(
    doors: Door, method: str
) -> None:
    with pytest.warns(errors.ManualCommit) if method == "commit" else pytest.warns():
        async with doors.scope(manual_commit="savepoint") as session:
            session.add(User(name="ann"))
            async with doors.scope(read_only=True) as inner:
                assert (await inner.scalars(select(User.name))).all() == ["ann"]
                await getattr(inner, method)()
            session.add(User(name="bob"))
            await session.commit()
    assert await names(doors) == ["ann", "bob"]
