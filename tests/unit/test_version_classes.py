"""What is refused when a class is defined, and what the values of a version are."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Column, DateTime, ForeignKey, Integer, Table, create_engine, event, func, inspect, select, update
from sqlalchemy.dialects import mssql, postgresql
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Session,
    make_transient_to_detached,
    mapped_column,
    registry,
    relationship,
)
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.schema import CreateTable

from sessionkit.errors import SessionKitError, VersionConflict, VersionError
from sessionkit.version import (
    TimestampVersioned,
    UUIDVersioned,
    Versioned,
    XminVersioned,
    _write,
    bump_version,
    expect_version,
)
from sessionkit.version._kinds import COUNT, MOMENT, UUID4, _Later, _NewUuid, clock
from tests.contract.versioned import table


def _dialect(module: Any) -> Any:
    return module.dialect()


def test_a_version_column_is_not_null_and_wired() -> None:
    class Base(DeclarativeBase):
        pass

    class A(Versioned, Base):
        __tablename__ = "a"
        id: Mapped[int] = mapped_column(primary_key=True)

    mapper = inspect(A)
    assert mapper.version_id_col is A.__table__.c.version_id
    assert not A.__table__.c.version_id.nullable


def test_a_class_with_mapper_arguments_of_its_own_is_versioned() -> None:
    class Base(DeclarativeBase):
        pass

    class A(Versioned, Base):
        __tablename__ = "a"
        __mapper_args__ = {"eager_defaults": True}  # noqa: RUF012
        id: Mapped[int] = mapped_column(primary_key=True)

    class B(Base, Versioned):
        __tablename__ = "b"
        __mapper_args__ = {"eager_defaults": True}  # noqa: RUF012
        id: Mapped[int] = mapped_column(primary_key=True)

    assert inspect(A).version_id_col is not None
    assert inspect(B).version_id_col is not None
    assert inspect(A).eager_defaults is True


def test_the_column_can_have_another_name() -> None:
    class Base(DeclarativeBase):
        pass

    class A(Versioned, Base):
        __tablename__ = "a"
        __version_column__ = "rev"
        id: Mapped[int] = mapped_column(primary_key=True)

    assert [c.name for c in A.__table__.c] == ["id", "rev"]
    assert A.version_id.property.columns[0] is A.__table__.c.rev


def test_a_mapped_dataclass_does_not_take_the_version_as_an_argument() -> None:
    class Base(DeclarativeBase):
        pass

    class A(Versioned, MappedAsDataclass, Base):
        __tablename__ = "a"
        id: Mapped[int] = mapped_column(primary_key=True)

    assert A(id=3).id == 3
    with pytest.raises(TypeError, match="version_id"):
        A(id=3, version_id=4)  # type: ignore[call-arg]


def test_a_registry_without_a_base_works_too() -> None:
    reg = registry()

    @reg.mapped
    class A(Versioned):
        __tablename__ = "a"
        id = Column(Integer, primary_key=True)

    assert inspect(A).version_id_col is not None


def test_a_class_that_has_a_version_already_is_refused() -> None:
    class Base(DeclarativeBase):
        pass

    with pytest.raises(VersionError, match=r"but its mapper already uses a\.rev as the version; remove version_id_col"):

        class A(Versioned, Base):
            __tablename__ = "a"
            id: Mapped[int] = mapped_column(primary_key=True)
            rev: Mapped[int] = mapped_column()
            __mapper_args__ = {"version_id_col": rev}  # noqa: RUF012


def test_a_class_that_defines_the_attribute_itself_is_refused() -> None:
    class Base(DeclarativeBase):
        pass

    with pytest.raises(VersionError, match="but defines 'version_id' itself; remove that"):

        class A(Versioned, Base):
            __tablename__ = "a"
            id: Mapped[int] = mapped_column(primary_key=True)
            version_id: Mapped[int] = mapped_column()

    with pytest.raises(VersionError, match="but defines 'updated_at' itself"):

        class B(Base, TimestampVersioned):
            __tablename__ = "b"
            id: Mapped[int] = mapped_column(primary_key=True)
            updated_at: Mapped[datetime] = mapped_column()


def test_a_class_that_keeps_its_time_by_itself_is_told_how_to_hand_it_over() -> None:
    class Base(DeclarativeBase):
        pass

    with pytest.raises(
        VersionError, match=r'hand it over: write __version_column__ = "changed" and migrate by op\.adopt'
    ):

        class A(TimestampVersioned, Base):
            __tablename__ = "a"
            id: Mapped[int] = mapped_column(primary_key=True)
            updated_at: Mapped[datetime] = mapped_column("changed")

    with pytest.raises(VersionError, match="hand it over"):

        class B(TimestampVersioned, Base):
            __tablename__ = "b"
            __version_column__ = "updated_at"  # and the column has another name
            id: Mapped[int] = mapped_column(primary_key=True)
            updated_at: Mapped[datetime] = mapped_column("changed")


def test_a_column_that_is_handed_over_is_as_the_kind_has_it() -> None:
    class Base(DeclarativeBase):
        pass

    class Stamped:
        updated_at: Mapped[datetime | None] = mapped_column(default=datetime.now, onupdate=datetime.now)

    class Fresh(TimestampVersioned, Base):
        __tablename__ = "fresh"
        id: Mapped[int] = mapped_column(primary_key=True)

    class A(Stamped, TimestampVersioned, Base):
        __tablename__ = "a"
        __version_column__ = "updated_at"
        id: Mapped[int] = mapped_column(primary_key=True)

    class B(TimestampVersioned, Base):
        __tablename__ = "b"
        __version_column__ = "changed"
        id: Mapped[int] = mapped_column(primary_key=True)
        updated_at: Mapped[datetime | None] = mapped_column("changed", server_default=func.now())

    class C(TimestampVersioned, Base):
        __table__ = Table(
            "c",
            Base.metadata,
            Column("id", Integer, primary_key=True),
            Column("updated_at", DateTime, onupdate=func.now()),
        )
        __version_column__ = "updated_at"
        updated_at = __table__.c.updated_at  # type: ignore[assignment]

    new = Fresh.__table__.c.updated_at
    for cls in (A, B, C):
        column = inspect(cls).version_id_col
        assert column is not None
        assert type(column.type) is type(new.type)
        assert not column.nullable
        assert column.server_default is None
        assert column.default is not None
        assert column.default.is_callable
        assert inspect(cls).version_id_generator is MOMENT.following
    assert "greatest(clock_timestamp(), a.updated_at" in str(
        A.__table__.c.updated_at.onupdate.arg.compile(dialect=_dialect(postgresql))
    )
    assert B.__table__.c.changed.onupdate is None


def test_a_column_that_holds_no_time_or_is_the_key_cannot_be_handed_over() -> None:
    class Base(DeclarativeBase):
        pass

    with pytest.raises(VersionError, match=r"its type is String\(\); the version must be a DateTime"):

        class A(TimestampVersioned, Base):
            __tablename__ = "a"
            __version_column__ = "updated_at"
            id: Mapped[int] = mapped_column(primary_key=True)
            updated_at: Mapped[str] = mapped_column()  # type: ignore[assignment]

    with pytest.raises(VersionError, match="part of the primary key"):

        class B(TimestampVersioned, Base):
            __tablename__ = "b"
            __version_column__ = "updated_at"
            id: Mapped[int] = mapped_column(primary_key=True)
            updated_at: Mapped[datetime] = mapped_column(primary_key=True)


def test_two_kinds_in_one_tree_are_refused() -> None:
    class Base(DeclarativeBase):
        pass

    class A(Versioned, Base):
        __tablename__ = "a"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str] = mapped_column()
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "a"}  # noqa: RUF012

    with pytest.raises(VersionError, match=r"B inherits TimestampVersioned, but its mapper already uses a\.version_id"):

        class B(TimestampVersioned, A):
            __tablename__ = "b"
            id: Mapped[int] = mapped_column(ForeignKey("a.id"), primary_key=True)
            __mapper_args__ = {"polymorphic_identity": "b"}  # noqa: RUF012


def test_a_class_in_the_table_of_one_without_versions_is_refused() -> None:
    class Base(DeclarativeBase):
        pass

    class A(Base):
        __tablename__ = "a"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str] = mapped_column()
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "a"}  # noqa: RUF012

    with pytest.raises(VersionError, match="shares the table a with A, whose rows would have no version"):

        class B(Versioned, A):
            __mapper_args__ = {"polymorphic_identity": "b"}  # noqa: RUF012


def test_unchecked_deletes_are_refused() -> None:
    class Base(DeclarativeBase):
        pass

    with pytest.raises(VersionError, match="confirm_deleted_rows=False"):

        class A(Versioned, Base):
            __tablename__ = "a"
            id: Mapped[int] = mapped_column(primary_key=True)
            __mapper_args__ = {"confirm_deleted_rows": False}  # noqa: RUF012


def test_the_version_can_be_in_the_table_of_a_joined_subclass() -> None:
    class Base(DeclarativeBase):
        pass

    class A(Base):
        __tablename__ = "a"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column()
        kind: Mapped[str] = mapped_column()
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "a"}  # noqa: RUF012

    class B(Versioned, A):
        __tablename__ = "b"
        id: Mapped[int] = mapped_column(ForeignKey("a.id"), primary_key=True)
        __mapper_args__ = {"polymorphic_identity": "b"}  # noqa: RUF012

    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine, expire_on_commit=False) as session:
        rows = [B(id=1, name="x"), B(id=2, name="x")]
        session.add_all(rows)
        session.commit()
        for b in rows:
            b.name = "y"
        session.commit()
        assert [b.version_id for b in rows] == [2, 2]
        session.execute(update(table(B)).where(table(B).c.id == 2).values(version_id=9))
        session.commit()
        for b in rows:
            b.name = "z"
        with pytest.raises(VersionConflict) as caught:
            session.commit()
        assert [(c.identity, c.current) for c in caught.value.conflicts] == [((2,), 9)]
    engine.dispose()


def test_an_xmin_class_without_a_column_to_set_cannot_be_bumped() -> None:
    class Base(DeclarativeBase):
        pass

    class A(XminVersioned, Base):
        __tablename__ = "a"
        id: Mapped[int] = mapped_column(primary_key=True)

    dialect = _dialect(postgresql)
    assert "xmin" not in str(CreateTable(table(A)).compile(dialect=dialect))
    row = A(id=1)
    make_transient_to_detached(row)
    with pytest.raises(VersionError, match="has no column apart from its key"):
        _write._touch(instance_state(row))


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        (("oder",), r"names 'oder', which is not a relationship of the class; it has order"),
        ("order", r"is the string 'order'; it must be a tuple"),
        (("other",), r"names 'other', but Other is not versioned"),
    ],
)
def test_parents_that_are_none_are_refused_at_the_first_flush(declared: Any, message: str) -> None:
    class Base(DeclarativeBase):
        pass

    class Other(Base):
        __tablename__ = "other"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Order(Versioned, Base):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Line(Base):
        __tablename__ = "lines"
        __version_parents__ = declared
        id: Mapped[int] = mapped_column(primary_key=True)
        order_id: Mapped[int | None] = mapped_column(ForeignKey("orders.id"))
        order: Mapped[Order | None] = relationship(Order)
        if declared == ("other",):
            other_id: Mapped[int | None] = mapped_column(ForeignKey("other.id"))
            other: Mapped[Other | None] = relationship(Other)

    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Line(id=1))
        with pytest.raises(VersionError, match=message):
            session.flush()
    engine.dispose()


def test_the_kinds_read_what_they_write() -> None:
    now = datetime(2026, 11, 24, 10, 11, 12, 5, tzinfo=timezone(timedelta(hours=2)))
    assert MOMENT.parse(MOMENT.text(now)) == now
    assert MOMENT.parse(MOMENT.text(now)).tzinfo is UTC
    assert COUNT.parse(COUNT.text(7)) == 7
    one = UUID("0123456789abcdef0123456789abcdef")
    assert UUID4.parse(UUID4.text(one)) == one
    assert MOMENT.understood(now.replace(tzinfo=None)).tzinfo is UTC


def test_the_next_timestamp_is_the_clocks_or_a_microsecond_after_the_last() -> None:
    token = clock.set(lambda: datetime(2026, 1, 1, tzinfo=UTC))
    try:
        assert MOMENT.following is not None
        assert MOMENT.following(None) == datetime(2026, 1, 1, tzinfo=UTC)
        assert MOMENT.following(datetime(2025, 1, 1, tzinfo=UTC)) == datetime(2026, 1, 1, tzinfo=UTC)
        last = datetime(2026, 1, 1, tzinfo=UTC)
        assert MOMENT.following(last) == last + timedelta(microseconds=1)
    finally:
        clock.reset(token)


def test_an_unknown_backend_is_told_from_those_whose_clock_is_known() -> None:
    class Base(DeclarativeBase):
        pass

    class A(TimestampVersioned, Base):
        __tablename__ = "a"
        id: Mapped[int] = mapped_column(primary_key=True)

    for expression in (_Later(A.updated_at), _NewUuid()):
        with pytest.raises(VersionError, match="does not know how to make the next version in the SQL of mssql"):
            select(expression).compile(dialect=_dialect(mssql))
    assert "clock_timestamp" in str(select(_Later(A.updated_at)).compile(dialect=_dialect(postgresql)))


def test_every_error_is_one_of_ours_and_the_stale_one_is_sqlalchemys_too() -> None:
    assert issubclass(VersionConflict, (SessionKitError, StaleDataError))
    assert issubclass(VersionError, SessionKitError)


def test_a_detached_object_can_be_given_an_expectation() -> None:
    class Base(DeclarativeBase):
        pass

    class A(UUIDVersioned, Base):
        __tablename__ = "a"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(default="")

    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine, expire_on_commit=False) as session:
        a = A(id=1)
        session.add(a)
        session.commit()
    expect_version(a, UUID(int=0))
    bump_version(a)
    with Session(engine) as session:
        session.add(a)
        with pytest.raises(VersionConflict):
            session.flush()
    engine.dispose()


def test_a_flush_is_what_we_take_it_for() -> None:
    """What is used of SQLAlchemy's undescribed UOWTransaction is there, and put back after its use."""

    class Base(DeclarativeBase):
        pass

    class A(Versioned, Base):
        __tablename__ = "a"
        id: Mapped[int] = mapped_column(primary_key=True)

    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    seen: list[Any] = []
    with Session(engine) as session:

        @event.listens_for(session, "after_flush")
        def look(_session: Session, flush: Any) -> None:
            seen.extend([dict(flush.states), vars(flush).get("execute")])

        row = A(id=1)
        session.add(row)
        session.flush()
        assert seen == [{instance_state(row): (False, False)}, None]
    engine.dispose()
