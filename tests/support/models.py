"""The small schema that the contract tests share: plain SQLAlchemy, nothing of sessionkit.

Each table is here for a law: `User.name` is unique (a flush that fails), `Account.balance` is checked (a statement
that fails), `Pledge.account_id` is checked only at COMMIT (a commit that fails), `Shift` is the doctors on call
(write skew), `Item` has defaults of every kind (bulk).
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import CheckConstraint, DateTime, ForeignKey, Numeric, String, create_engine, func
from sqlalchemy.engine import URL
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50), unique=True)
    email: Mapped[str | None] = mapped_column(String(100))
    addresses: Mapped[list[Address]] = relationship(back_populates="user", cascade="all, delete-orphan")


class Address(Base):
    __tablename__ = "addresses"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    email: Mapped[str] = mapped_column(String(100))
    user: Mapped[User] = relationship(back_populates="addresses")


class Account(Base):
    __tablename__ = "accounts"
    __table_args__ = (CheckConstraint("balance >= 0", name="balance_is_not_negative"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str] = mapped_column(String(50), default="nobody")
    balance: Mapped[int] = mapped_column(default=0)


class Pledge(Base):
    """Points to an account, which need not exist before the COMMIT."""

    __tablename__ = "pledges"

    id: Mapped[int] = mapped_column(primary_key=True)
    account_id: Mapped[int] = mapped_column(ForeignKey("accounts.id", deferrable=True, initially="DEFERRED"))


class Shift(Base):
    __tablename__ = "shifts"

    doctor: Mapped[str] = mapped_column(String(50), primary_key=True)
    on_call: Mapped[bool]


def now() -> datetime:
    return datetime.now(UTC)


class Item(Base):
    """A key that the application chooses, and defaults from Python, from the server, and for updates."""

    __tablename__ = "items"

    sku: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str | None] = mapped_column(String(100))
    quantity: Mapped[int] = mapped_column(default=1)
    price: Mapped[Decimal | None] = mapped_column(Numeric(12, 2))
    state: Mapped[str] = mapped_column(String(20), server_default="new")
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.current_timestamp())
    updated_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True), onupdate=now)


def load_postgresql(*, host: str, port: int, user: str, dbname: str, password: str | None, **_: Any) -> None:
    """Fill the template database; called by pytest-postgresql with an address in pieces."""
    url = URL.create("postgresql+psycopg", username=user, password=password, host=host, port=int(port), database=dbname)
    load(url)


def load(url: URL) -> None:
    engine = create_engine(url)
    Base.metadata.create_all(engine)
    # An open connection to the template would keep it from being cloned.
    engine.dispose()
