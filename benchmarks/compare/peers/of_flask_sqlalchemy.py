"""Flask-SQLAlchemy: one session for each application context, committed by hand."""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from flask import Flask, has_app_context
from flask_sqlalchemy import SQLAlchemy

from benchmarks.compare.peer import Feature
from benchmarks.compare.peers._sqlalchemy import Base, OnSqlalchemy, SessionWork, sync_url

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import URL

DOCS = "https://flask-sqlalchemy.palletsprojects.com/en/stable"


class FlaskSqlalchemy(OnSqlalchemy):
    name = "Flask-SQLAlchemy"
    docs = f"{DOCS}/contexts/"
    packages = ("flask-sqlalchemy", "flask", "sqlalchemy")
    features = {
        "isolation": Feature("flask_sqlalchemy:SQLAlchemy", "per engine", f"{DOCS}/config/"),
        "ambient": Feature("flask_sqlalchemy:SQLAlchemy", "`db.session`", f"{DOCS}/contexts/"),
    }

    def __init__(self, url: URL, *, serializable: bool = False) -> None:
        self.app = Flask("comparison")
        self.app.config["SQLALCHEMY_DATABASE_URI"] = sync_url(url)
        if serializable:
            self.app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"isolation_level": "SERIALIZABLE"}
        self.db = SQLAlchemy(model_class=Base)
        self.db.init_app(self.app)

    def close(self) -> None:
        with self.app.app_context():
            self.db.engine.dispose()

    def context(self) -> AbstractContextManager[Any]:
        return nullcontext() if has_app_context() else self.app.app_context()

    @contextmanager
    def unit(self) -> Iterator[SessionWork]:
        with self.context():
            yield SessionWork(self.db.session())
            self.db.session.commit()

    def ambient(self) -> object:
        return self.db.session()

    def empty(self) -> None:
        with self.app.app_context():
            self.db.session.commit()

    def one_row(self, number: int) -> None:
        with self.app.app_context():
            self.add_item(self.db.session(), number)
            self.db.session.commit()


PEER = FlaskSqlalchemy
