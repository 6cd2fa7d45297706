"""Units with a key, for the tests of `once=`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from sessionkit import on_commit
from tests.support.models import Account

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncSession

    from tests.support.doors import Door


class Payments:
    """A unit that writes an account for each order, and notes its runs and its hooks."""

    def __init__(self) -> None:
        self.runs: list[int] = []
        self.hooks: list[int] = []

    async def pay(self, session: AsyncSession, order: int, amount: int = 5) -> dict[str, int]:
        self.runs.append(order)
        account = Account(balance=amount)
        session.add(account)
        await session.flush()
        on_commit(lambda: self.hooks.append(order))
        return {"order": order, "id": account.id}

    def unit(self, doors: Door, factory: Any = None, **options: Any) -> Callable[..., Awaitable[Any]]:
        async def pay(session: AsyncSession, order: int, amount: int = 5) -> dict[str, int]:
            return await self.pay(session, order, amount)

        return doors.decorate(pay, factory, **{"once": lambda order: f"pay:{order}", **options})


async def paid(doors: Door) -> int:
    """Return how many accounts there are."""
    return int(await doors.scalar(select(func.count()).select_from(Account)))


async def keys(doors: Door) -> list[tuple[str, str]]:
    """Return the keys that are committed, each with its kind."""
    return [(key, kind) for key, kind in await doors.rows("SELECT key, kind FROM sessionkit_once ORDER BY kind, key")]
