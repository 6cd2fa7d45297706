"""The steps about concurrent work: versions, retry, isolation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import create_engine, func, orm, select, update
from sqlalchemy.exc import DBAPIError

from sessionkit.errors import VersionConflict
from sessionkit.isolation import SNAPSHOT, effective_isolation
from sessionkit.retry import Retry
from sessionkit.version import expect_version, version_of

from ._stage import Account, LeftOut, Price, in_memory

if TYPE_CHECKING:
    from sessionkit.retry import Attempt

    from ._stage import Stage


def conflict_is_found(stage: Stage) -> str:
    """Two people edit the same row."""
    Session = stage.Session
    with stage.ledger.looking_away(), Session.scope() as session:
        session.add(Price(product="teapot", cents=1900))

    def code() -> None:
        @Session.scope
        def show(session: orm.Session) -> int:
            return int(version_of(session.get_one(Price, "teapot")))

        @Session.scope
        def save(session: orm.Session, cents: int, seen: int) -> None:
            price = session.get_one(Price, "teapot")
            expect_version(price, seen)
            price.cents = cents

        seen_by_ann = seen_by_bob = show()
        save(1800, seen_by_bob)
        save(1700, seen_by_ann)

    ran = stage.play(code)
    stage.expect(isinstance(ran.error, VersionConflict), f"it raised {ran.error!r}")
    stage.expect(_cents(stage) == 1800, f"the price is {_cents(stage)}, but it should be Bob's 1800")
    return "VersionConflict: Bob's price stays, and Ann learns that it changed after she read it"


def unit_is_retried(stage: Stage) -> str:
    """A unit that meets a conflict runs again."""
    if in_memory(stage.engine):
        raise LeftOut("no other connection can use a SQLite database in memory")
    Session, ledger = stage.Session, stage.ledger
    engine = create_engine(stage.url)
    try:
        with engine.connect() as bob:
            bob.execute(update(Price).values(cents=Price.cents + 50, version_id=Price.version_id + 1))

            def bob_commits(attempt: Attempt) -> None:
                ledger.remark(f"attempt {attempt.number} failed; Bob commits, and the whole unit runs again")
                bob.commit()

            def code() -> None:
                policy = Retry(3, also=("lock_not_available",), before_retry=bob_commits)

                @Session.scope(retry=policy, lock_timeout=0.1)
                def discount(session: orm.Session) -> None:
                    session.get_one(Price, "teapot").cents -= 100

                discount()

            ran = stage.play(code)
    finally:
        engine.dispose()
    stage.expect(ran.error is None, f"it raised {ran.error!r}")
    stage.expect(_cents(stage) == 1750, f"the price is {_cents(stage)}, but it should be 1800 + 50 - 100")
    return "the second attempt read what Bob had committed: no change is lost, and the caller sees no error"


def report_only_reads(stage: Stage) -> str:
    """A report that can only read."""
    Session = stage.Session
    before = stage.balances()

    def code() -> None:
        with Session.scope(preset=SNAPSHOT) as session:
            session.scalar(select(func.sum(Account.balance)))
            session.execute(update(Account).values(balance=0))

    ran = stage.play(code)
    stage.expect(isinstance(ran.error, DBAPIError), f"it raised {ran.error!r}")
    stage.expect_balances(**before)
    given = effective_isolation(stage.engine, "REPEATABLE READ").level
    return f"the database itself refused the write; asked for REPEATABLE READ, it gives {given}"


def _cents(stage: Stage) -> int | None:
    with stage.ledger.looking_away(), stage.engine.connect() as connection:
        return connection.scalar(select(Price.cents))
