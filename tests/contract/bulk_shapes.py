"""Mapped classes of every shape: inheritance, computed attributes, composites, for the tests that hold bulk to the unit
of work. Each row has a `label` of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ForeignKey, Integer, String, func
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    column_property,
    composite,
    deferred,
    mapped_column,
    synonym,
    validates,
)

from sessionkit import Versioned, XminVersioned

# ruff: noqa: RUF012 - __mapper_args__ is SQLAlchemy's name and form


class Base(DeclarativeBase):
    pass


class XminBase(DeclarativeBase):
    """Apart, for its tables have no version on any backend but one."""


# One table for all classes


class Vehicle(Versioned, Base):
    __tablename__ = "shape_vehicles"

    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[int] = mapped_column(unique=True)
    kind: Mapped[str] = mapped_column(String(10))
    wheels: Mapped[int] = mapped_column(default=4)
    __mapper_args__: dict[str, Any] = {"polymorphic_on": kind, "polymorphic_identity": "vehicle"}


class Car(Vehicle):
    doors: Mapped[int | None] = mapped_column(default=5)
    __mapper_args__: dict[str, Any] = {"polymorphic_identity": "car"}


class Van(Car):
    load: Mapped[int | None] = mapped_column("load %", onupdate=77)
    __mapper_args__: dict[str, Any] = {"polymorphic_identity": "van"}


class Truck(Vehicle):
    axles: Mapped[int | None]
    __mapper_args__: dict[str, Any] = {"polymorphic_identity": "truck"}


# A table for each class, joined


class Person(Versioned, Base):
    __tablename__ = "shape_persons"

    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[int] = mapped_column(unique=True)
    kind: Mapped[int] = mapped_column(Integer)
    name: Mapped[str | None] = mapped_column(String(20), default="nobody")
    __mapper_args__: dict[str, Any] = {"polymorphic_on": "kind", "polymorphic_identity": 1}


class Employee(Person):
    __tablename__ = "shape_employees"

    employee_id: Mapped[int] = mapped_column("id", ForeignKey(Person.id), primary_key=True)
    salary: Mapped[int | None] = mapped_column("the salary", default=lambda: 1000)
    seen: Mapped[int | None] = mapped_column(onupdate=lambda: 7)
    __mapper_args__: dict[str, Any] = {"polymorphic_identity": 2}


class Manager(Employee):
    __tablename__ = "shape_managers"

    manager_id: Mapped[int] = mapped_column(ForeignKey(Employee.employee_id), primary_key=True)
    team: Mapped[str | None] = mapped_column(String(20), server_default="none yet")
    __mapper_args__: dict[str, Any] = {"polymorphic_identity": 3}


class Guest(Person):
    """A joined class with the key of its parent under the same name."""

    __tablename__ = "shape_guests"

    id: Mapped[int] = mapped_column(ForeignKey(Person.id), primary_key=True)
    host: Mapped[str | None] = mapped_column(String(20))
    __mapper_args__: dict[str, Any] = {"polymorphic_identity": 4}


# A table for each class, apart


class Plain(Base):
    __tablename__ = "shape_plain"

    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[int] = mapped_column(unique=True)
    note: Mapped[str | None] = mapped_column(String(20))


class Apart(Plain):
    __tablename__ = "shape_apart"

    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[int] = mapped_column(unique=True)
    note: Mapped[str | None] = mapped_column(String(20), default="apart")
    __mapper_args__: dict[str, Any] = {"concrete": True}


# What is computed, renamed, put together


@dataclass
class Span:
    low: int | None
    high: int | None

    def __composite_values__(self) -> tuple[int | None, int | None]:
        return self.low, self.high


class Computed(Versioned, Base):
    __tablename__ = "shape_computed"
    __version_column__ = "lock version"

    id: Mapped[int] = mapped_column("the id", primary_key=True)
    label: Mapped[int] = mapped_column(unique=True)
    first: Mapped[str] = mapped_column("select", String(20), default="f")
    last: Mapped[str | None] = mapped_column(String(20))
    span: Mapped[Span | None] = composite(
        Span, mapped_column("span low", Integer), mapped_column('span "high"', Integer)
    )
    big: Mapped[str | None] = deferred(mapped_column(String(50)))
    surname: Mapped[str | None] = synonym("last")
    shouted: Mapped[str] = column_property(func.upper(first))

    @hybrid_property
    def full(self) -> str:
        return f"{self.first} {self.last}"

    @full.inplace.setter
    def _set_full(self, value: str) -> None:
        self.first, self.last = value.split(" ")

    @validates("first")
    def _check(self, key: str, value: str) -> str:
        return value


# PostgreSQL's own version


class Page(XminVersioned, XminBase):
    __tablename__ = "shape_pages"

    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[int] = mapped_column(unique=True)
    text: Mapped[str | None] = mapped_column(String(20), default="blank")
