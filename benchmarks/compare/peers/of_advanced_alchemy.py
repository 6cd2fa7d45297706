"""advanced-alchemy: a configuration that gives sessions, and repositories on them."""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from advanced_alchemy.config import EngineConfig, SQLAlchemyAsyncConfig, SQLAlchemySyncConfig
from advanced_alchemy.repository import SQLAlchemySyncRepository

from benchmarks.compare.peer import Feature
from benchmarks.compare.peers._sqlalchemy import Account, Counter, Item, OnSqlalchemy, SessionWork, async_url, sync_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from sqlalchemy import URL
    from sqlalchemy.ext.asyncio import AsyncSession

DOCS = "https://advanced-alchemy.litestar.dev/latest"


class Accounts(SQLAlchemySyncRepository[Account]):
    model_type = Account


class Counters(SQLAlchemySyncRepository[Counter]):
    model_type = Counter


class Items(SQLAlchemySyncRepository[Item]):
    model_type = Item


class RepositoryWork(SessionWork):
    def add(self, number: int, name: str, balance: int = 0) -> None:
        Accounts(session=self.session).add(Account(id=number, name=name, balance=balance))

    def get(self, number: int, *, versioned: bool = False) -> Any:
        repository = Counters if versioned else Accounts
        return repository(session=self.session).get(number)

    def save(self, row: Any) -> None:
        repository = Counters if isinstance(row, Counter) else Accounts
        repository(session=self.session).update(row)


class AdvancedAlchemy(OnSqlalchemy):
    name = "advanced-alchemy"
    docs = f"{DOCS}/usage/repositories/index.html"
    packages = ("advanced-alchemy", "sqlalchemy")
    features = {
        "isolation": Feature("advanced_alchemy.config:EngineConfig", "per engine", f"{DOCS}/usage/index.html"),
        "async": Feature("advanced_alchemy.config:SQLAlchemyAsyncConfig", "separate classes", docs),
        "upsert": Feature("advanced_alchemy.repository:SQLAlchemySyncRepository.upsert_many", "`upsert_many()`", docs),
        "readers": Feature(
            "advanced_alchemy.config.routing:RoutingConfig", "`RoutingConfig`", f"{DOCS}/usage/routing.html"
        ),
    }

    def __init__(self, url: URL, *, serializable: bool = False) -> None:
        self.url = url
        engine: Any = {"engine_config": EngineConfig(isolation_level="SERIALIZABLE")} if serializable else {}
        self.config = SQLAlchemySyncConfig(
            connection_string=sync_url(url).render_as_string(hide_password=False), **engine
        )

    def close(self) -> None:
        self.config.get_engine().dispose()

    @contextmanager
    def unit(self) -> Iterator[SessionWork]:
        with self.config.get_session() as session:
            yield RepositoryWork(session)
            session.commit()

    def open_async(self) -> None:
        self.async_config = SQLAlchemyAsyncConfig(
            connection_string=async_url(self.url).render_as_string(hide_password=False)
        )

    @asynccontextmanager
    async def async_unit(self) -> AsyncIterator[AsyncSession]:
        async with self.async_config.get_session() as session:
            yield session
            await session.commit()

    def empty(self) -> None:
        with self.config.get_session() as session:
            session.commit()

    def one_row(self, number: int) -> None:
        with self.config.get_session() as session:
            Items(session=session).add(Item(code=number, name="item", price=1.5), auto_commit=True)

    def insert(self, rows: Sequence[dict[str, Any]]) -> list[int]:
        with self.config.get_session() as session:
            added = Items(session=session).add_many([Item(**row) for row in rows])
            ids = [item.id for item in added]
            session.commit()
            return ids

    def upsert(self, rows: Sequence[dict[str, Any]]) -> list[int]:
        with self.config.get_session() as session:
            done = Items(session=session).upsert_many([Item(**row) for row in rows], match_fields=["code"])
            ids = {item.code: item.id for item in done}
            session.commit()
            return [ids[row["code"]] for row in rows]


PEER = AdvancedAlchemy
