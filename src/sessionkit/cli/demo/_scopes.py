"""The steps about scopes: what is committed, what is not, and how the caller learns it."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from sqlalchemy import orm
from sqlalchemy.exc import IntegrityError

from sessionkit.errors import UnexpectedRollback
from sessionkit.hooks import on_commit

from ._stage import Account

if TYPE_CHECKING:
    from ._stage import Stage


def commits(stage: Stage) -> str:
    """A scope commits."""
    Session = stage.Session

    def code() -> None:
        with Session.scope() as session:
            session.add(Account(owner="ann", balance=100))
            session.add(Account(owner="bob", balance=0))

    ran = stage.play(code)
    stage.expect(ran.error is None, f"it raised {ran.error!r}")
    stage.expect_balances(ann=100, bob=0)
    return "the block ended: both accounts are committed, the connection is back in the pool"


def rolls_back(stage: Stage) -> str:
    """An exception rolls back."""
    Session = stage.Session

    def code() -> None:
        with Session.scope() as session:
            session.get_one(Account, "ann").balance -= 30
            session.flush()
            raise RuntimeError("bob's account is nowhere to be found")

    ran = stage.play(code)
    stage.expect(isinstance(ran.error, RuntimeError), f"it raised {ran.error!r}")
    stage.expect_balances(ann=100, bob=0)
    return "ann still has 100, and the caller sees the exception as it was raised"


def decorates(stage: Stage) -> str:
    """A function that runs in a scope."""
    Session = stage.Session

    def code() -> None:
        @Session.scope
        def transfer(session: orm.Session, source: str, target: str, amount: int) -> None:
            session.get_one(Account, source).balance -= amount
            session.get_one(Account, target).balance += amount

        transfer("ann", "bob", 30)

    ran = stage.play(code)
    stage.expect(ran.error is None, f"it raised {ran.error!r}")
    stage.expect_balances(ann=70, bob=30)
    return "the session was supplied, and each call is a transaction of its own"


def hook_waits(stage: Stage) -> str:
    """A hook that waits for the commit."""
    Session, remark, balances = stage.Session, stage.ledger.remark, stage.balances

    def code() -> None:
        def mail() -> None:
            remark(f"mail to bob: {balances()['bob']} in the database")

        with Session.scope() as session:
            session.get_one(Account, "bob").balance += 5
            on_commit(mail)
            remark("the block ends")

    ran = stage.play(code)
    stage.expect(ran.error is None, f"it raised {ran.error!r}")
    stage.expect(ran.sql[-2:] == ["COMMIT", "-- mail to bob: 35 in the database"], "the mail did not wait")
    return "the mail left after COMMIT; a rollback would have dropped it"


def joins(stage: Stage) -> str:
    """A scope inside a scope joins it."""
    Session = stage.Session

    def code() -> None:
        @Session.scope
        def deposit(session: orm.Session, owner: str, amount: int) -> None:
            session.get_one(Account, owner).balance += amount

        with Session.scope():
            deposit("ann", 10)
            deposit("bob", 10)

    ran = stage.play(code)
    stage.expect(ran.error is None, f"it raised {ran.error!r}")
    stage.expect(ran.sql.count("COMMIT") == 1, "it was not one transaction")
    stage.expect_balances(ann=80, bob=45)
    return "two functions with their own scopes, one transaction: the outermost commits"


def savepoint_heals(stage: Stage) -> str:
    """A nested scope fails alone."""
    Session = stage.Session

    def code() -> None:
        with Session.scope() as session:
            session.get_one(Account, "ann").balance -= 20
            try:
                with Session.scope(propagation="savepoint"):
                    session.get_one(Account, "bob").balance -= 1000
            except IntegrityError:
                session.add(Account(owner="safe", balance=20))

    ran = stage.play(code)
    stage.expect(ran.error is None, f"it raised {ran.error!r}")
    stage.expect_balances(ann=60, bob=45, safe=20)
    return "its savepoint undid what failed inside it; the rest is committed"


def plain_says_nothing(stage: Stage) -> str:
    """A swallowed error, without sessionkit."""
    plain = orm.sessionmaker(stage.engine)

    def code() -> None:
        with plain.begin() as session:
            session.get_one(Account, "ann").balance -= 50
            session.add(Account(owner="bob", balance=50))
            with suppress(IntegrityError):
                session.flush()

    ran = stage.play(code)
    stage.expect(ran.error is None, f"it raised {ran.error!r}")
    stage.expect_balances(ann=60, bob=45, safe=20)
    return "no exception, and nothing was committed: the caller believes that it was"


def honest_commit(stage: Stage) -> str:
    """The same error, and the honest commit."""
    Session = stage.Session

    def code() -> None:
        with Session.scope() as session:
            session.get_one(Account, "ann").balance -= 50
            session.add(Account(owner="bob", balance=50))
            with suppress(IntegrityError):
                session.flush()

    ran = stage.play(code)
    stage.expect(isinstance(ran.error, UnexpectedRollback), f"it raised {ran.error!r}")
    stage.expect(isinstance(ran.error and ran.error.__cause__, IntegrityError), "the first error is not named")
    stage.expect_balances(ann=60, bob=45, safe=20)
    return "UnexpectedRollback: nothing was committed, and the caller knows, and knows why"
