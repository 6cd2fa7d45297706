"""SQLAlchemy alone: `sessionmaker.begin()`, and the recipes of its documentation."""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import scoped_session, sessionmaker

from benchmarks.compare.peer import Feature
from benchmarks.compare.peers import _sqlalchemy as shared
from benchmarks.compare.peers._sqlalchemy import DOCS, OnSqlalchemy, SessionWork, async_url, sync_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from sqlalchemy import URL


class Sqlalchemy(OnSqlalchemy):
    name = "SQLAlchemy"
    docs = f"{DOCS}/orm/session_transaction.html"
    packages = ("sqlalchemy",)
    features = {
        "unit": Feature("sqlalchemy.orm:sessionmaker.begin", "`sessionmaker.begin()`", docs),
        "savepoint": Feature("sqlalchemy.orm:Session.begin_nested", "`begin_nested()`", docs),
        "isolation": Feature("sqlalchemy.orm:Session.connection", "per transaction", docs),
        "read_only": Feature(
            "sqlalchemy.dialects.postgresql:dialect", "PostgreSQL's option", f"{DOCS}/dialects/postgresql.html"
        ),
        "version": Feature("sqlalchemy.orm:Mapper", "`version_id_col`", f"{DOCS}/orm/versioning.html"),
        "hooks": Feature("sqlalchemy.orm:SessionEvents.after_commit", "session events", f"{DOCS}/orm/events.html"),
        "async": Feature(
            "sqlalchemy.ext.asyncio:AsyncSession", "`AsyncSession`", f"{DOCS}/orm/extensions/asyncio.html"
        ),
        "ambient": Feature("sqlalchemy.orm:scoped_session", "`scoped_session`", f"{DOCS}/orm/contextual.html"),
        "upsert": Feature(
            "sqlalchemy.dialects.postgresql:Insert.on_conflict_do_update",
            "per dialect",
            f"{DOCS}/orm/queryguide/dml.html",
        ),
        "tests": Feature("sqlalchemy.orm:Session", "a recipe", docs),
    }

    def __init__(self, url: URL, *, serializable: bool = False) -> None:
        options = {"isolation_level": "SERIALIZABLE"} if serializable else {}
        self.url = url
        self.engine = create_engine(sync_url(url), **options)
        self.Session = sessionmaker(self.engine)
        self.registry = scoped_session(self.Session)

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def unit(self) -> Iterator[SessionWork]:
        with self.Session.begin() as session:
            yield SessionWork(session)

    def ambient(self) -> object:
        return self.registry()

    def isolated_test(self, test: Callable[[], None]) -> None:
        with self.engine.connect() as connection:
            transaction = connection.begin()
            self.Session.configure(bind=connection, join_transaction_mode="create_savepoint")
            test()
            transaction.rollback()

    def open_async(self) -> None:
        self.AsyncSession = async_sessionmaker(create_async_engine(async_url(self.url)))

    @asynccontextmanager
    async def async_unit(self) -> AsyncIterator[AsyncSession]:
        async with self.AsyncSession.begin() as session:
            yield session

    def empty(self) -> None:
        with self.Session.begin():
            pass

    def one_row(self, number: int) -> None:
        with self.Session.begin() as session:
            self.add_item(session, number)

    def insert(self, rows: Sequence[dict[str, Any]]) -> list[int]:
        with self.Session.begin() as session:
            return shared.insert_in_order(session, rows)

    def upsert(self, rows: Sequence[dict[str, Any]]) -> list[int]:
        with self.Session.begin() as session:
            return shared.upsert_on_conflict(session, rows)


PEER = Sqlalchemy
