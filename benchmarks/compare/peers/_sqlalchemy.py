"""What the peers on SQLAlchemy share: models, the words of a body, and SQLAlchemy's own ways for what they do not add."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import String, event, func, insert, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from benchmarks.compare.peer import Missing, Peer, Work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from sqlalchemy import URL

SYNC = {"sqlite": "sqlite+pysqlite", "postgresql": "postgresql+psycopg"}
ASYNC = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}
DOCS = "https://docs.sqlalchemy.org/en/21"
LOCK_WAIT = 1  # seconds that SQLite's driver waits for a lock, for every peer; its default of five only takes longer


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "account"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(50), unique=True)
    balance: Mapped[int]


class Item(Base):
    __tablename__ = "item"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[int] = mapped_column(unique=True)
    name: Mapped[str] = mapped_column(String(50))
    price: Mapped[float]


class VersionedBase(DeclarativeBase):
    pass


class Counter(VersionedBase):
    """The table of accounts again, with SQLAlchemy's version column."""

    __tablename__ = "account"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(50), unique=True)
    balance: Mapped[int]
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version}


def sync_url(url: URL) -> URL:
    """Return the address for SQLAlchemy's usual driver."""
    url = url.set(drivername=SYNC[url.get_backend_name()])
    return url.update_query_dict({"timeout": str(LOCK_WAIT)}) if url.get_backend_name() == "sqlite" else url


def async_url(url: URL) -> URL:
    """Return the address for its usual driver in async code."""
    url = url.set(drivername=ASYNC[url.get_backend_name()])
    return url.update_query_dict({"timeout": str(LOCK_WAIT)}) if url.get_backend_name() == "sqlite" else url


class SessionWork:
    """The words of a body, for a Session."""

    counter: type[Any] = Counter

    def __init__(self, session: Session) -> None:
        self.session = session

    def add(self, number: int, name: str, balance: int = 0) -> None:
        self.session.add(Account(id=number, name=name, balance=balance))
        self.session.flush()

    def get(self, number: int, *, versioned: bool = False) -> Any:
        return self.session.get_one(self.counter if versioned else Account, number)

    def save(self, row: Any) -> None:
        self.session.flush()

    def total(self) -> int:
        return self.session.scalars(select(func.sum(Account.balance))).one()

    def sql(self, statement: str) -> Any:
        result: Any = self.session.execute(text(statement))
        return result.scalar() if result.returns_rows else None


class OnSqlalchemy(Peer):
    """A peer whose unit hands over a Session, and which has for the rest what SQLAlchemy has."""

    inherits = ("unit", "savepoint", "isolation", "read_only", "version", "hooks", "upsert")

    def savepoint(self, work: Any) -> AbstractContextManager[Any]:
        return work.session.begin_nested()  # type: ignore[no-any-return]

    @contextmanager
    def read_only(self) -> Iterator[Work]:
        with self.unit() as work:
            session = work.session  # type: ignore[attr-defined]
            if session.get_bind().dialect.name == "sqlite":
                raise Missing("on PostgreSQL only", f"{DOCS}/dialects/postgresql.html")
            session.connection(execution_options={"postgresql_readonly": True})
            yield work

    def after_commit(self, work: Any, hook: Callable[[], object]) -> None:
        event.listen(work.session, "after_commit", lambda _session: hook())

    @staticmethod
    def add_item(session: Session, number: int) -> None:
        session.add(Item(code=number, name="item", price=1.5))


def insert_in_order(session: Session, rows: Sequence[dict[str, Any]]) -> list[int]:
    """Insert by SQLAlchemy's bulk INSERT."""
    statement = insert(Item).returning(Item.id, sort_by_parameter_order=True)
    return list(session.scalars(statement, rows))


def upsert_on_conflict(session: Session, rows: Sequence[dict[str, Any]]) -> list[int]:
    """Upsert by SQLAlchemy's ON CONFLICT; the order is made by hand, since RETURNING promises none here."""
    if session.get_bind().dialect.name == "sqlite":
        from sqlalchemy.dialects.sqlite import insert as upsert
    else:
        from sqlalchemy.dialects.postgresql import insert as upsert  # type: ignore[assignment]
    statement: Any = upsert(Item)
    changes = {name: statement.excluded[name] for name in ("name", "price")}
    statement = statement.on_conflict_do_update(index_elements=["code"], set_=changes)
    ids = dict(session.execute(statement.returning(Item.code, Item.id), rows).tuples().all())
    return [ids[row["code"]] for row in rows]
