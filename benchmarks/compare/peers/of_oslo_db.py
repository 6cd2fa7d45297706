"""oslo.db: `enginefacade` with a context that is handed on, and `wrap_db_retry`."""

from __future__ import annotations

import threading
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from oslo_db.api import wrap_db_retry
from oslo_db.sqlalchemy import asyncio_facade, enginefacade

from benchmarks.compare.peer import Feature, Missing
from benchmarks.compare.peers._sqlalchemy import OnSqlalchemy, SessionWork, async_url, sync_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from sqlalchemy import URL
    from sqlalchemy.ext.asyncio import AsyncSession

DOCS = "https://docs.openstack.org/oslo.db/latest"


@enginefacade.transaction_context_provider
class Context:
    """What the caller hands on."""


@asyncio_facade.async_transaction_context_provider
class AsyncContext:
    """The same in async code."""


class OsloDb(OnSqlalchemy):
    name = "oslo.db"
    docs = f"{DOCS}/user/usage.html"
    packages = ("oslo.db", "sqlalchemy")
    features = {
        "unit": Feature("oslo_db.sqlalchemy.enginefacade:writer", "`writer.using()`", docs),
        "decorator": Feature("oslo_db.sqlalchemy.enginefacade:writer", "`@writer`", docs),
        "joins": Feature("oslo_db.sqlalchemy.enginefacade:writer", "through the context object", docs),
        "savepoint": Feature("oslo_db.sqlalchemy.enginefacade:writer.savepoint", "`writer.savepoint`", docs),
        "retry": Feature("oslo_db.api:wrap_db_retry", "`wrap_db_retry`", f"{DOCS}/reference/index.html"),
        "async": Feature("oslo_db.sqlalchemy.asyncio_facade:writer", "a second facade", docs),
        "readers": Feature("oslo_db.sqlalchemy.enginefacade:reader", "`reader`", docs),
        "tests": Feature("oslo_db.sqlalchemy.provision:ProvisionedDatabase", "a database per test", docs),
    }

    def __init__(self, url: URL, *, serializable: bool = False) -> None:
        self.url = url
        self.serializable = serializable
        self.facade = enginefacade.transaction_context()
        self.facade.configure(connection=sync_url(url).render_as_string(hide_password=False))
        self._contexts = threading.local()

    @property
    def request(self) -> Context:
        """The context of this thread's request."""
        if not hasattr(self._contexts, "own"):
            self._contexts.own = Context()
        return self._contexts.own  # type: ignore[no-any-return]

    def close(self) -> None:
        self.facade.dispose_pool()

    @contextmanager
    def unit(self) -> Iterator[SessionWork]:
        with self.facade.writer.using(self.request) as session:
            if self.serializable:
                # enginefacade has no option for it; SQLAlchemy's can be used on its session.
                session.connection(execution_options={"isolation_level": "SERIALIZABLE"})
            yield SessionWork(session)

    @contextmanager
    def savepoint(self, work: Any) -> Iterator[SessionWork]:
        with self.facade.writer.savepoint.using(self.request) as session:
            yield SessionWork(session)

    @contextmanager
    def read_only(self) -> Iterator[SessionWork]:
        with self.facade.reader.using(self.request) as session:
            yield SessionWork(session)

    def retried(self, body: Callable[[Any], object]) -> object:
        @wrap_db_retry(
            max_retries=5,
            retry_interval=0.01,
            inc_retry_interval=False,
            retry_on_deadlock=True,
            retry_on_disconnect=True,
        )
        def run() -> object:
            with self.unit() as work:
                return body(work)

        return run()

    def isolated_test(self, test: Callable[[], None]) -> None:
        raise Missing("a database per test", self.docs)

    def open_async(self) -> None:
        self.async_facade = asyncio_facade.transaction_context()
        # Not through asyncpg: the facade hands PostgreSQL's engine an argument that asyncpg's does not take.
        url = sync_url(self.url) if self.url.get_backend_name() == "postgresql" else async_url(self.url)
        self.async_facade.configure(connection=url.render_as_string(hide_password=False))

    @asynccontextmanager
    async def async_unit(self) -> AsyncIterator[AsyncSession]:
        async with self.async_facade.writer.using(AsyncContext()) as session:
            yield session

    def empty(self) -> None:
        with self.facade.writer.using(Context()):
            pass

    def one_row(self, number: int) -> None:
        with self.facade.writer.using(Context()) as session:
            self.add_item(session, number)


PEER = OsloDb
