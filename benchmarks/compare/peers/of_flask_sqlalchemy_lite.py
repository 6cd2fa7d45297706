"""Flask-SQLAlchemy-Lite: plain sessions for an application context, committed by hand."""

from __future__ import annotations

from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from flask import Flask, has_app_context
from flask_sqlalchemy_lite import SQLAlchemy

from benchmarks.compare.peer import Feature
from benchmarks.compare.peers._sqlalchemy import OnSqlalchemy, SessionWork, async_url, sync_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from sqlalchemy import URL
    from sqlalchemy.ext.asyncio import AsyncSession

DOCS = "https://flask-sqlalchemy-lite.readthedocs.io"


class FlaskSqlalchemyLite(OnSqlalchemy):
    name = "Flask-SQLAlchemy-Lite"
    docs = f"{DOCS}/session/"
    packages = ("flask-sqlalchemy-lite", "flask", "sqlalchemy")
    features = {
        "isolation": Feature("flask_sqlalchemy_lite:SQLAlchemy", "per engine", f"{DOCS}/engine/"),
        "async": Feature(
            "flask_sqlalchemy_lite:SQLAlchemy.async_sessionmaker", "`async_sessionmaker`", f"{DOCS}/session/"
        ),
        "ambient": Feature("flask_sqlalchemy_lite:SQLAlchemy.session", "`db.session`", f"{DOCS}/session/"),
        "tests": Feature("flask_sqlalchemy_lite:SQLAlchemy.test_isolation", "`test_isolation()`", f"{DOCS}/testing/"),
    }

    def __init__(self, url: URL, *, serializable: bool = False) -> None:
        self.url = url
        options = {"isolation_level": "SERIALIZABLE"} if serializable else {}
        self.app = Flask("comparison")
        self.app.config["SQLALCHEMY_ENGINES"] = {"default": {"url": sync_url(url), **options}}
        self.db = SQLAlchemy(self.app)

    def close(self) -> None:
        with self.app.app_context():
            self.db.engine.dispose()

    def context(self) -> AbstractContextManager[Any]:
        return nullcontext() if has_app_context() else self.app.app_context()

    @contextmanager
    def unit(self) -> Iterator[SessionWork]:
        with self.context():
            yield SessionWork(self.db.session)
            self.db.session.commit()

    def ambient(self) -> object:
        return self.db.session

    def isolated_test(self, test: Callable[[], None]) -> None:
        with self.db.test_isolation():
            test()

    def open_async(self) -> None:
        app = Flask("comparison")
        app.config["SQLALCHEMY_ASYNC_ENGINES"] = {"default": async_url(self.url)}
        db = SQLAlchemy(app)
        with app.app_context():
            self.async_sessionmaker = db.async_sessionmaker

    @asynccontextmanager
    async def async_unit(self) -> AsyncIterator[AsyncSession]:
        async with self.async_sessionmaker() as session:
            yield session
            await session.commit()

    def empty(self) -> None:
        with self.app.app_context():
            self.db.session.commit()

    def one_row(self, number: int) -> None:
        with self.app.app_context():
            self.add_item(self.db.session, number)
            self.db.session.commit()


PEER = FlaskSqlalchemyLite
