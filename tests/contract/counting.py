"""Count the Python calls of a unit of work; a program, so that what is plain can be counted where nothing is imported.

    python counting.py plain                 sessionkit is never imported
    python counting.py imported              it is imported, and not used
    python counting.py used                  scopes of every kind have used the engine before
    python counting.py scope                 the units are scopes
    python counting.py scope engine          and a listener stands on the engine (or elsewhere: see PLANTS)

It prints a JSON object: how many calls of Python functions each kind of unit costs.
"""

from __future__ import annotations

import gc
import json
import sys
from typing import Any

from sqlalchemy import create_engine, event, insert, orm, select


class Base(orm.DeclarativeBase):
    pass


class A(Base):
    __tablename__ = "a"

    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)


PLANTS: dict[str, Any] = {
    "engine": lambda engine: event.listen(engine, "before_cursor_execute", lambda *_: None),
    "session": lambda engine: event.listen(orm.Session, "do_orm_execute", lambda _: None),
    "begin": lambda engine: event.listen(orm.Session, "after_begin", lambda *_: None),
}


def calls_of(unit: Any) -> int:
    """Return how many Python calls `unit` makes once it is warm."""
    seen = [0]

    def note(_frame: Any, what: str, _argument: Any) -> None:
        if what == "call":
            seen[0] += 1

    for _ in range(2):
        unit()
    counts = set()
    for _ in range(3):
        seen[0] = 0
        sys.setprofile(note)
        try:
            unit()
        finally:
            sys.setprofile(None)
        counts.add(seen[0])
    assert len(counts) == 1, f"the calls of a warm unit are not the same each time: {sorted(counts)}"
    return counts.pop()


def unit_of(begin: Any, selects: int) -> Any:
    """Return a unit that sends so many SELECTs."""
    statement = select(A.id).where(A.id == 1)

    def unit() -> None:
        with begin() as session:
            for _ in range(selects):
                session.scalars(statement).all()

    return unit


def counted(begin: Any) -> dict[str, int]:
    return {
        "empty": calls_of(unit_of(begin, 0)),
        "one": calls_of(unit_of(begin, 1)),
        "eleven": calls_of(unit_of(begin, 11)),
    }


def use(engine: Any) -> None:
    """Have scopes of every kind use the engine."""
    from contextlib import suppress

    from sqlalchemy.exc import IntegrityError
    from sqlalchemy.orm.exc import StaleDataError

    from sessionkit import Retry, on_commit, session_scope, sessionmaker

    Session = sessionmaker(engine)
    for options in (
        {},
        {"read_only": True},
        {"isolation": "SERIALIZABLE"},
        {"statement_timeout": 5.0},
        {"lock_timeout": 5.0},
    ):
        for scope in (Session.scope(**options), session_scope(orm.sessionmaker(engine), **options)):
            with scope as session:
                session.scalars(select(A.id)).all()
                with Session.scope(), Session.scope(propagation="savepoint"):
                    on_commit(lambda: None, session=session)
    with suppress(IntegrityError), Session.scope() as session:
        session.execute(insert(A).values(id=1))
    with suppress(LookupError), Session.scope() as session:
        session.add(A(id=2))
        raise LookupError
    for attempt in Session.attempts(retry=Retry(2, wait=0)):
        with attempt as session:
            session.scalars(select(A.id)).all()
            if attempt.number == 1:
                raise StaleDataError("again")


def joined(Session: Any) -> int:
    """Return what an empty scope costs that joins another one."""
    counts = []

    def unit() -> None:
        with Session.scope():
            pass

    with Session.scope():
        counts.append(calls_of(unit))
    return counts[0]


def main(kind: str, planted: str | None = None) -> None:
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with orm.Session(engine) as session:
        session.add(A(id=1))
        session.commit()
    begin: Any = orm.sessionmaker(engine).begin
    if kind != "plain":
        import sessionkit

        if kind == "used":
            use(engine)
        if kind == "scope":
            Session = sessionkit.sessionmaker(engine)
            begin = Session.scope
    if planted is not None:
        PLANTS[planted](engine)
    gc.collect()
    gc.disable()
    counts = counted(begin)
    plain = orm.sessionmaker(engine)
    counts["ten of a plain session"] = calls_of(unit_of(plain, 10))
    if kind == "scope":
        counts["joined"] = joined(Session)
    if kind == "plain":
        assert "sessionkit" not in sys.modules
    print(json.dumps(counts))  # noqa: T201 - it is what it is for


if __name__ == "__main__":
    main(*sys.argv[1:])
