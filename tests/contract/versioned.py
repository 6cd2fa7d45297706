"""Versioned classes of every kind and shape, and the fixture that makes their tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import ForeignKey, String, Table
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    mapped_column,
    relationship,
)

from sessionkit.version import TimestampVersioned, UUIDVersioned, Versioned, XminVersioned
from tests.support.doors import Door


class Base(DeclarativeBase):
    pass


class XminBase(DeclarativeBase):
    """Apart, for its tables have no version on any backend but one."""


class Doc(Versioned, Base):
    __tablename__ = "v_docs"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(50), default="")
    body: Mapped[str | None] = mapped_column(String(200))
    pages: Mapped[int] = mapped_column(default=0)


class Renamed(Versioned, Base):
    """The column has another name, and the class mapper arguments of its own."""

    __tablename__ = "v_renamed"
    __version_column__ = "lock version"
    __mapper_args__ = {"eager_defaults": True}  # noqa: RUF012

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(50), default="")


class Stamped(TimestampVersioned, Base):
    __tablename__ = "v_stamped"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(50), default="")


class Unique(UUIDVersioned, Base):
    __tablename__ = "v_unique"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(50), default="")


class Pair(Versioned, Base):
    """A composite key."""

    __tablename__ = "v_pairs"

    left: Mapped[int] = mapped_column(primary_key=True)
    right: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(50), default="")


class AbstractDoc(Versioned, Base):
    __abstract__ = True

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(50), default="")


class Concrete(AbstractDoc):
    __tablename__ = "v_concrete"


class Data(Versioned, MappedAsDataclass, Base):
    """A dataclass."""

    __tablename__ = "v_data"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(50), default="")


class Last(Base, Versioned):
    """The bases the other way round."""

    __tablename__ = "v_last"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(50), default="")


class Animal(Versioned, Base):
    """Joined and single-table inheritance in one tree."""

    __tablename__ = "v_animals"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(20))
    title: Mapped[str] = mapped_column(String(50), default="")
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}  # noqa: RUF012


class Dog(Animal):
    __tablename__ = "v_dogs"

    id: Mapped[int] = mapped_column(ForeignKey("v_animals.id"), primary_key=True)
    bark: Mapped[str] = mapped_column(String(20), default="")
    __mapper_args__ = {"polymorphic_identity": "dog"}  # noqa: RUF012


class Cat(Animal):
    purr: Mapped[str | None] = mapped_column(String(20))
    __mapper_args__ = {"polymorphic_identity": "cat"}  # noqa: RUF012


class StampedAnimal(TimestampVersioned, Base):
    __tablename__ = "v_stamped_animals"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(20))
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}  # noqa: RUF012


class StampedDog(StampedAnimal):
    __tablename__ = "v_stamped_dogs"

    id: Mapped[int] = mapped_column(ForeignKey("v_stamped_animals.id"), primary_key=True)
    title: Mapped[str] = mapped_column(String(20), default="")
    __mapper_args__ = {"polymorphic_identity": "dog"}  # noqa: RUF012


class Customer(Versioned, Base):
    """The root of an aggregate of three levels: Customer, Order, Line; and Note, whose collection has no way back."""

    __tablename__ = "v_customers"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(50), default="")
    orders: Mapped[list[Order]] = relationship(back_populates="customer", cascade="all, delete-orphan")


class Order(Versioned, Base):
    __tablename__ = "v_orders"
    __version_parents__ = ("customer",)

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(50), default="")
    customer_id: Mapped[int | None] = mapped_column(ForeignKey("v_customers.id"))
    customer: Mapped[Customer | None] = relationship(back_populates="orders")
    lines: Mapped[list[Line]] = relationship(back_populates="order", cascade="all, delete-orphan")
    notes: Mapped[list[Note]] = relationship(cascade="all")


class Line(Base):
    __tablename__ = "v_lines"
    __version_parents__ = ("order",)

    id: Mapped[int] = mapped_column(primary_key=True)
    amount: Mapped[int] = mapped_column(default=1)
    order_id: Mapped[int | None] = mapped_column(ForeignKey("v_orders.id"))
    order: Mapped[Order | None] = relationship(back_populates="lines")


class Note(Base):
    __tablename__ = "v_notes"
    __version_parents__ = ("order",)

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(String(50), default="")
    order_id: Mapped[int | None] = mapped_column(ForeignKey("v_orders.id"))
    order: Mapped[Order | None] = relationship(overlaps="notes")


class Page(XminVersioned, XminBase):
    __tablename__ = "v_pages"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(50), default="")


class XminAnimal(XminVersioned, XminBase):
    __tablename__ = "v_xmin_animals"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(20))
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}  # noqa: RUF012


class XminDog(XminAnimal):
    __tablename__ = "v_xmin_dogs"

    id: Mapped[int] = mapped_column(ForeignKey("v_xmin_animals.id"), primary_key=True)
    title: Mapped[str] = mapped_column(String(20), default="")
    __mapper_args__ = {"polymorphic_identity": "dog"}  # noqa: RUF012


EVERY_SHAPE = (Doc, Renamed, Stamped, Unique, Concrete, Data, Last, Animal, Dog, Cat, StampedDog)
"""Each has `id` and `title`."""


def shapes(doors: Door) -> tuple[type[Any], ...]:
    """Return the classes that can be used on a backend."""
    return (*EVERY_SHAPE, Page, XminDog) if doors.backend == "postgresql" else EVERY_SHAPE


def table(cls: type[Any]) -> Table:
    """Return the table of a class."""
    found = cls.__table__
    assert isinstance(found, Table)
    return found


@pytest.fixture
def tables(doors: Door) -> Iterator[None]:
    """Make the tables in the door's database, and drop them."""
    kinds = [Base.metadata, *([XminBase.metadata] if doors.backend == "postgresql" else [])]
    level = "READ COMMITTED" if doors.backend == "postgresql" else "SERIALIZABLE"
    # In one transaction, which is much the faster.
    engine = doors.database.observer.execution_options(isolation_level=level)
    with engine.begin() as connection:
        for metadata in kinds:
            metadata.create_all(connection, checkfirst=False)
    yield
    if doors.backend == "postgresql":
        with engine.begin() as connection:
            for metadata in kinds:
                # A test may have made a table anew.
                metadata.drop_all(connection, checkfirst=False)
