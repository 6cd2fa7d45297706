"""The cost of routing to readers, of read-your-writes and of two phases.

    python -m benchmarks.binding --url postgresql+psycopg://... [--rounds 40] [--strict]

One server is primary and reader at once, so that a round trip costs the same everywhere. For the last table its
``max_prepared_transactions`` is above 0; it makes the table ``sessionkit_commit`` if that is not there.
Exit status 1 if a target is missed and --strict is given.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Integer, MetaData, Table, create_engine, insert, literal, select
from sqlalchemy.engine import URL, make_url

import sessionkit
from benchmarks._measure import Case, Report, conditions, measure, repeat
from sessionkit import commits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ONE = select(literal(1))
NOTED = Table("sessionkit_benchmark", MetaData(), Column("n", Integer))


def routing(url: URL) -> list[Case]:
    """A read-only scope with one SELECT: on the primary, and on a reader that has already passed the token."""
    plain = sessionkit.sessionmaker(create_engine(url), read_only=True)

    def routed(**kw: Any) -> Any:
        return sessionkit.sessionmaker(
            create_engine(url), readers=[create_engine(url)], allow_writable_readers=True, **kw
        )

    unread = routed(read_your_writes=False)
    tracked = routed()
    with tracked.scope() as session:
        session.scalar(ONE)
    cases: dict[str, Any] = {
        "read_only, no readers": plain.scope(),
        "a reader": unread.scope(read_only=True),
        "a reader, after a commit": tracked.scope(read_only=True),
    }

    def body(scope: Any) -> Callable[[], None]:
        def once() -> None:
            with scope as session:
                session.scalar(ONE)

        return once

    return [Case(name, repeat(body(scope))) for name, scope in cases.items()]


def writing(url: URL) -> list[Case]:
    """A scope with one INSERT. If there are readers, it asks for the position of its commit."""

    def body(factory: Any) -> Callable[[], None]:
        def once() -> None:
            with factory.scope() as session:
                session.execute(insert(NOTED).values(n=1))

        return once

    readers: dict[str, Any] = {"readers": [create_engine(url)], "allow_writable_readers": True}
    return [
        Case("no readers", repeat(body(sessionkit.sessionmaker(create_engine(url))))),
        Case("readers", repeat(body(sessionkit.sessionmaker(create_engine(url), **readers)))),
    ]


def committing(url: URL) -> list[Case]:
    """A scope that writes through two engines."""

    def body(twophase: bool) -> Callable[[], None]:
        first, second = create_engine(url), create_engine(url)
        factory = sessionkit.sessionmaker(first, twophase=twophase)

        def once() -> None:
            with factory.scope() as session:
                session.execute(insert(NOTED).values(n=1))
                session.execute(insert(NOTED).values(n=2), bind_arguments={"bind": second})

        return once

    return [Case("one after the other", repeat(body(False))), Case("twophase=True", repeat(body(True)))]


def tables(url: URL) -> Iterator[tuple[str, list[Case], str, dict[str, float]]]:
    """Title, cases, reference and targets of each table."""
    reference = "read_only, no readers"
    yield "One SELECT", routing(url), reference, {"a reader": 1.05, "a reader, after a commit": 1.05}
    yield "One INSERT", writing(url), "no readers", {}
    yield "Two databases, one INSERT each", committing(url), "one after the other", {}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", type=make_url, help="a PostgreSQL to measure on; nothing is measured without")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--strict", action="store_true", help="exit status 1 if a target is missed")
    options, _ = parser.parse_known_args()
    if options.url is None:
        print("no --url was given: readers and two phases are measured on PostgreSQL only")
        return 0
    engine = create_engine(options.url)
    commits.create_table(engine)
    NOTED.create(engine, checkfirst=True)
    print(conditions("psycopg"), "\n")
    missed = []
    try:
        for title, cases, reference, targets in tables(options.url):
            report = Report(title, measure(cases, rounds=options.rounds), reference, targets)
            print(report.markdown(), flush=True)
            missed += [f"{title}: {name}, {report.ratio(name):.2f}" for name in report.missed()]
    finally:
        NOTED.drop(engine)
    print("\n".join(f"missed its target: {line}" for line in missed) or "every target was met")
    return 1 if missed and options.strict else 0


if __name__ == "__main__":
    sys.exit(main())
