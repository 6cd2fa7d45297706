"""Models for the tests of bulk: versions of two kinds, joined inheritance, a composite key."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ForeignKey, MetaData, String, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sessionkit import TimestampVersioned, UUIDVersioned


class Base(DeclarativeBase):
    metadata = MetaData()


class Order(Base):
    """A counted version, and a unique number."""

    __tablename__ = "bulk_orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[str] = mapped_column(String(20), unique=True)
    state: Mapped[str] = mapped_column(String(20), default="new")
    version: Mapped[int] = mapped_column()

    __mapper_args__: dict[str, Any] = {"version_id_col": version}  # noqa: RUF012 - SQLAlchemy's name and form


class Draft(Base):
    """A counted version that old rows do not have."""

    __tablename__ = "bulk_drafts"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(String(20))
    version: Mapped[int | None] = mapped_column()

    __mapper_args__: dict[str, Any] = {"version_id_col": version}  # noqa: RUF012 - SQLAlchemy's name and form


class Note(TimestampVersioned, Base):
    """A version that is the server's time."""

    __tablename__ = "bulk_notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(String(20))


class Token(UUIDVersioned, Base):
    __tablename__ = "bulk_tokens"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(String(20))


class Line(Base):
    __tablename__ = "bulk_lines"
    __table_args__ = (UniqueConstraint("order_number", "article"),)

    order_number: Mapped[str] = mapped_column(String(20), primary_key=True)
    place: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    article: Mapped[str] = mapped_column(String(20))


class Animal(Base):
    __tablename__ = "bulk_animals"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(10))
    name: Mapped[str] = mapped_column(String(20))

    __mapper_args__: dict[str, Any] = {"polymorphic_on": kind, "polymorphic_identity": "animal"}  # noqa: RUF012 - as above


class Dog(Animal):
    __tablename__ = "bulk_dogs"

    id: Mapped[int] = mapped_column(ForeignKey("bulk_animals.id"), primary_key=True)
    tricks: Mapped[int] = mapped_column(default=0)

    __mapper_args__: dict[str, Any] = {"polymorphic_identity": "dog"}  # noqa: RUF012 - as above


async def create(doors: Any) -> None:
    """Make the tables in the test's database."""
    async with doors.connect() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.commit()
