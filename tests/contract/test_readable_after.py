"""What a scope that owns its session returns stays readable after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import inspect, select
from sqlalchemy.orm import selectinload
from sqlalchemy.orm.exc import DetachedInstanceError

from sessionkit import set_rollback_only
from tests.contract.breaking import names
from tests.support.models import Address, Item, User

if TYPE_CHECKING:
    from tests.support.doors import Door

pytestmark = pytest.mark.above_drivers


@pytest.fixture(params=["ours", "plain", "expiring"])
def factory(request: pytest.FixtureRequest, doors: Door) -> Any:
    """Also where `expire_on_commit=True` was asked for: the session that would expire them is closed at once."""
    if request.param == "plain":
        return doors.plain_factory()
    return doors.Session if request.param == "ours" else doors.factory(expire_on_commit=True)


async def test_a_new_object_can_be_read_after_its_scope_with_the_key_that_the_database_gave(
    doors: Door, factory: Any
) -> None:
    async with doors.scope(factory) as session:
        user = User(name="ann", email="a@x")
        session.add(user)
    assert (user.name, user.email) == ("ann", "a@x")
    assert await doors.rows("SELECT id FROM users") == [(user.id,)]
    assert inspect(user).detached


async def test_a_loaded_object_can_be_read_after_its_scope(doors: Door, factory: Any) -> None:
    await doors.write("INSERT INTO users (id, name) VALUES (7, 'ann')")
    await doors.write("INSERT INTO addresses (user_id, email) VALUES (7, 'a@x')")

    async def load(session: Any) -> User:
        users = await session.scalars(select(User).options(selectinload(User.addresses)))
        user: User = users.one()
        user.email = "changed"
        return user

    user = await doors.decorate(load, factory)()
    assert (user.id, user.name, user.email) == (7, "ann", "changed")
    assert [address.email for address in user.addresses] == ["a@x"]


async def test_a_deleted_object_can_be_read_after_its_scope(doors: Door, factory: Any) -> None:
    await doors.write("INSERT INTO users (id, name) VALUES (7, 'ann')")
    async with doors.scope(factory) as session:
        user = await session.get(User, 7)
        await session.delete(user)
    assert user is not None
    assert user.name == "ann"
    assert await names(doors) == []


async def test_what_a_joined_scope_returns_is_not_expired_when_it_ends(doors: Door, factory: Any) -> None:
    async def load(session: Any) -> User:
        user = User(name="ann")
        session.add(user)
        await session.flush()
        return user

    with doors.statements() as sql:
        async with doors.scope(factory):
            user = await doors.decorate(load, factory)()
            before = len(sql)
            assert user.name == "ann"
            assert len(sql) == before, "reading it has asked the database"
    assert user.name == "ann"


async def test_what_was_not_loaded_says_that_it_is_detached(doors: Door, factory: Any) -> None:
    await doors.write("INSERT INTO users (id, name) VALUES (7, 'ann')")
    async with doors.scope(factory) as session:
        user = await session.get(User, 7)
    assert user is not None
    with pytest.raises(DetachedInstanceError):
        assert user.addresses


async def test_an_object_can_go_on_in_the_next_scope(doors: Door, factory: Any) -> None:
    async with doors.scope(factory) as session:
        user = User(name="ann", addresses=[Address(email="a@x")])
        session.add(user)
    async with doors.scope(factory) as session:
        session.add(user)
        user.name = "anne"
    async with doors.scope(factory) as session:
        merged = await session.merge(User(id=user.id, name="anna"))
        assert merged is not user
    assert await names(doors) == ["anna"]


async def test_server_defaults_that_were_fetched_stay(doors: Door, factory: Any) -> None:
    async with doors.scope(factory) as session:
        item = Item(sku="a")
        session.add(item)
        await session.flush()
        await session.refresh(item)
    assert item.state == "new"
    assert item.created_at is not None
    assert item.quantity == 1


async def test_a_session_outside_of_scopes_expires_as_it_always_did(doors: Door) -> None:
    async with doors.session() as session:
        user = User(name="ann")
        session.add(user)
        await session.commit()
        assert inspect(user).expired_attributes
        async with session.begin_nested():
            await session.refresh(user)
        await session.rollback()


async def test_a_scope_that_rolled_back_lets_go_of_its_objects(doors: Door, factory: Any) -> None:
    async with doors.scope(factory) as session:
        user = User(name="ann")
        session.add(user)
        await session.flush()
        set_rollback_only()
    assert inspect(user).transient
    assert user.name == "ann"
    async with doors.scope(factory) as session:
        session.add(user)
    assert await names(doors) == ["ann"]
