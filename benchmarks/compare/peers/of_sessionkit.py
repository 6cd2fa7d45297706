"""sessionkit."""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import sessionkit
from benchmarks.compare.peer import Feature
from benchmarks.compare.peers._sqlalchemy import Item, OnSqlalchemy, SessionWork, async_url, sync_url
from sessionkit import Retry, Versioned, bulk, commits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from sqlalchemy import URL


class OurBase(DeclarativeBase):
    pass


class OurCounter(Versioned, OurBase):
    __tablename__ = "account"
    __version_column__ = "version"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str]
    balance: Mapped[int]


class OurWork(SessionWork):
    counter = OurCounter


class Sessionkit(OnSqlalchemy):
    name = "sessionkit"
    docs = "index.md"
    packages = ("sessionkit", "sqlalchemy")
    features = {
        "unit": Feature("sessionkit:sessionmaker.scope", "`Session.scope()`", "reference/scopes.md"),
        "decorator": Feature("sessionkit:sessionmaker.scope", "`@Session.scope`", "reference/scopes.md"),
        "joins": Feature("sessionkit:session_scope", "joins", "explanation/propagation.md"),
        "savepoint": Feature("sessionkit:session_scope", '`propagation="savepoint"`', "explanation/propagation.md"),
        "retry": Feature("sessionkit:Retry", "`retry=`", "how-to/retry-a-unit-of-work.md"),
        "outcome": Feature(
            "sessionkit:commits", "`verify_commit=`", "how-to/find-out-whether-a-commit-went-through.md"
        ),
        "isolation": Feature("sessionkit:Isolation", "per unit", "reference/presets.md"),
        "read_only": Feature("sessionkit:READ_ONLY", "per unit", "how-to/make-a-read-only-report.md"),
        "timeout": Feature("sessionkit:Preset", "per unit", "how-to/set-a-statement-timeout.md"),
        "version": Feature("sessionkit:Versioned", "`Versioned`", "explanation/optimistic-concurrency.md"),
        "hooks": Feature("sessionkit:on_commit", "`on_commit()`", "reference/hooks.md"),
        "async": Feature("sessionkit:async_sessionmaker", "same names", "explanation/sync-and-async.md"),
        "ambient": Feature(
            "sessionkit:scoped_session", "`current_session()`, `scoped_session`", "how-to/keep-scoped-session.md"
        ),
        "upsert": Feature("sessionkit:bulk.upsert", "`bulk.upsert`", "how-to/bulk-upsert.md"),
        "readers": Feature("sessionkit:sessionmaker", "`readers=`", "how-to/read-from-replicas.md"),
        "tests": Feature(
            "sessionkit.integrations.pytest_plugin:sessionkit_isolation",
            "a pytest fixture",
            "how-to/test-code-that-commits.md",
        ),
    }

    def __init__(self, url: URL, *, serializable: bool = False) -> None:
        self.url = url
        self.engine = create_engine(sync_url(url))
        self.Session = sessionkit.sessionmaker(self.engine)
        self.options: dict[str, Any] = {"isolation": "SERIALIZABLE"} if serializable else {}
        self.registry = sessionkit.scoped_session(self.Session)

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def unit(self) -> Iterator[SessionWork]:
        with self.Session.scope(**self.options) as session:
            yield OurWork(session)

    @contextmanager
    def savepoint(self, work: Any) -> Iterator[SessionWork]:
        with self.Session.scope(propagation="savepoint") as session:
            yield OurWork(session)

    @contextmanager
    def read_only(self) -> Iterator[SessionWork]:
        with self.Session.scope(read_only=True) as session:
            yield OurWork(session)

    @contextmanager
    def limited(self, seconds: float) -> Iterator[SessionWork]:
        with self.Session.scope(statement_timeout=seconds) as session:
            yield OurWork(session)

    def retried(self, body: Callable[[Any], object]) -> object:
        return self._decorated(body, retry=Retry(wait=0.005))

    def prepare_to_verify(self) -> None:
        commits.create_table(self.engine)

    def verified(self, body: Callable[[Any], object]) -> object:
        return self._decorated(body, retry=Retry(wait=0.005), verify_commit=True)

    def _decorated(self, body: Callable[[Any], object], **options: Any) -> object:
        @self.Session.scope(**self.options, **options)
        def run(session: Any) -> object:
            return body(OurWork(session))

        return run()  # type: ignore[no-untyped-call]

    def after_commit(self, work: Any, hook: Callable[[], object]) -> None:
        sessionkit.on_commit(hook)

    def ambient(self) -> object:
        return self.registry()

    def isolated_test(self, test: Callable[[], None]) -> None:
        from sessionkit.integrations._kit.isolation import KitIsolation

        # What the fixture `sessionkit_isolation` does around a test.
        isolation = KitIsolation([self.Session])
        isolation.begin()
        try:
            test()
        finally:
            isolation.end()

    def open_async(self) -> None:
        self.AsyncSession = sessionkit.async_sessionmaker(create_async_engine(async_url(self.url)))

    @asynccontextmanager
    async def async_unit(self) -> AsyncIterator[AsyncSession]:
        async with self.AsyncSession.scope() as session:
            yield session

    def empty(self) -> None:
        with self.Session.scope():
            pass

    def one_row(self, number: int) -> None:
        with self.Session.scope() as session:
            self.add_item(session, number)

    def insert(self, rows: Sequence[dict[str, Any]]) -> list[int]:
        with self.Session.scope() as session:
            return [number for (number,) in bulk.insert(session, Item, rows, returning=[Item.id]).returned]

    def upsert(self, rows: Sequence[dict[str, Any]]) -> list[int]:
        with self.Session.scope() as session:
            done = bulk.upsert(
                session, Item, rows, match=[Item.code], update=[Item.name, Item.price], returning=[Item.id]
            )
            return [number for (number,) in done.returned]


PEER = Sessionkit
