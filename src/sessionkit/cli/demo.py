"""`sessionkit demo`: a tour of scopes on a real database.

A step is a function: it lets the stage run a piece of code, which is shown as it stands here, checks what came of it,
and returns that in a sentence. To add a step, write one and put it into `STEPS`.
"""

from __future__ import annotations

import asyncio
import inspect
import tempfile
import textwrap
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import CheckConstraint, Engine, String, create_engine, func, orm, select
from sqlalchemy import inspect as inspect_database
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sessionkit import bulk
from sessionkit.errors import UnexpectedRollback
from sessionkit.factory import sessionmaker
from sessionkit.hooks import on_commit

from ._console import Console, console
from ._ledger import Ledger
from ._load import LoadBase, Memory, Reading, Readings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["ROWS", "STEPS", "run"]

ROWS = 10_000
"""How many are loaded where nobody says."""

MEMORY = 16.0
"""By how many MB a load may make the process grow, however many rows it has."""


class Base(DeclarativeBase):
    """The demo's own tables."""


class Account(Base):
    """Money, so that it matters whether half of a transfer is committed."""

    __tablename__ = "sessionkit_demo"
    __table_args__ = (CheckConstraint("balance >= 0", name="sessionkit_demo_balance"),)

    owner: Mapped[str] = mapped_column(String(20), primary_key=True)
    balance: Mapped[int]


class Misbehaved(Exception):
    """A step did not do what it promises."""


class LeftOut(Exception):
    """A step cannot be shown here; the message says why."""


class Ran(NamedTuple):
    """What came of a piece of code."""

    sql: list[str]
    error: BaseException | None
    value: Any = None


class Stage:
    """What the steps work with: the engine, the factory, and the eyes of the audience."""

    def __init__(self, url: URL, screen: Console, rows: int = ROWS) -> None:
        self.url = url
        self.screen = screen
        self.rows = rows
        self.ledger = Ledger()
        self.engine: Engine = create_engine(url)
        self.ledger.follow(self.engine)
        self.Session = sessionmaker(self.engine)

    def play(self, code: Callable[[], object]) -> Ran:
        """Show a piece of code, run it, show the SQL and the error, if any."""
        self.screen.code(_body_of(code))
        error: Exception | None = None
        value: object = None
        with self.ledger.recording():
            try:
                value = code()
            except Exception as raised:  # noqa: BLE001 - it is shown, and the step judges it
                error = raised
        self.screen.sql(self.ledger.lines)
        if error is not None:
            self.screen.sql([f"-- raised {type(error).__name__}: {_first_line(error)}"])
        return Ran(self.ledger.lines, error, value)

    def balances(self) -> dict[str, int]:
        """Look at what is committed."""
        with self.ledger.looking_away(), self.engine.connect() as connection:
            rows = connection.execute(select(Account.owner, Account.balance).order_by(Account.owner))
            return {row.owner: row.balance for row in rows}

    def expect(self, fact: object, otherwise: str) -> None:
        """Hold a step to its promise.

        Raises:
            Misbehaved: it did not keep it.
        """
        if not fact:
            raise Misbehaved(otherwise)

    def expect_balances(self, **balances: int) -> None:
        """Hold a step to what must be committed now."""
        found = self.balances()
        self.expect(found == balances, f"the database holds {found}, but it should hold {balances}")


def _body_of(code: Callable[[], object]) -> str:
    try:
        lines, _ = inspect.getsourcelines(code)
    except OSError:  # an installation without sources
        return "(the source is not there to be shown)"
    body = textwrap.dedent("".join(lines[1:])).rstrip()
    return "\n".join(line.partition("  # noqa")[0] for line in body.splitlines())


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]


# -- the steps ------------------------------------------------------------------------------------------------------


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
            remark(f"mail to bob, who has {balances()['bob']} in the database")

        with Session.scope() as session:
            session.get_one(Account, "bob").balance += 5
            on_commit(mail)
            remark("the block ends")

    ran = stage.play(code)
    stage.expect(ran.error is None, f"it raised {ran.error!r}")
    stage.expect(ran.sql[-2:] == ["COMMIT", "-- mail to bob, who has 35 in the database"], "the mail did not wait")
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
    return "two functions with scopes of their own, one transaction: the outermost commits"


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


def loads(stage: Stage) -> str:
    """Many rows at once."""
    # Not the engine that the ledger follows: that would note a line for each row.
    engine = create_engine(stage.url)
    Session, readings, memory = sessionmaker(engine), Readings(stage.rows), Memory()

    def code() -> bulk.BulkResult:
        with Session.scope() as session:
            return bulk.insert(session, Reading, readings, progress=True, on_progress=memory.look)

    try:
        LoadBase.metadata.create_all(engine)
        started = time.perf_counter()
        try:
            ran = stage.play(code)
            seconds = time.perf_counter() - started
            with engine.connect() as connection:
                found = connection.scalar(select(func.count()).select_from(Reading))
        finally:
            LoadBase.metadata.drop_all(engine)
    finally:
        engine.dispose()
    stage.expect(ran.error is None, f"it raised {ran.error!r}")
    result: bulk.BulkResult = ran.value
    stage.expect(found == result.inserted == stage.rows, f"{found:,} of {stage.rows:,} rows are there")
    told = f"{stage.rows:,} rows by {result.method} in {seconds:.1f} s, {stage.rows / seconds:,.0f} a second"
    if not memory.known:
        return told
    # A database in memory keeps the rows themselves in this process.
    if not _in_memory(stage.url):
        stage.expect(memory.grown <= MEMORY, f"{told}; but the process grew by {memory.grown:.1f} MB")
    return f"{told}; the process grew by {memory.grown:.1f} MB"


def async_twin(stage: Stage) -> str:
    """The same in async code."""
    url = _async_url(stage.url)
    from sqlalchemy.ext.asyncio import create_async_engine

    from sessionkit.async_factory import async_sessionmaker

    engine = create_async_engine(url)
    stage.ledger.follow(engine.sync_engine)
    Session = async_sessionmaker(engine)

    async def code() -> None:
        async with Session.scope() as session:
            ann = await session.get_one(Account, "ann")
            ann.balance += 40

    async def code_and_dispose() -> None:
        try:
            await code()
        finally:
            await engine.dispose()

    def in_a_loop() -> None:
        # Not the default loop: on Windows that is one which psycopg cannot use.
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            runner.run(code_and_dispose())

    in_a_loop.__wrapped__ = code  # type: ignore[attr-defined]  # what is shown
    ran = stage.play(in_a_loop)
    stage.expect(ran.error is None, f"it raised {ran.error!r}")
    stage.expect_balances(ann=100, bob=45, safe=20)
    return "one name in both colours: an async factory makes async scopes"


def _async_url(url: URL) -> URL:
    """Return the address for the async driver.

    Raises:
        LeftOut: there is none, or it is not installed.
    """
    driver = {"sqlite": "aiosqlite", "postgresql": "psycopg"}.get(url.get_backend_name())
    if driver is None:
        raise LeftOut(f"the demo knows no async driver for {url.get_backend_name()}")
    if _in_memory(url):
        raise LeftOut("a second engine cannot see a SQLite database in memory")
    missing = [name for name in ("greenlet", driver) if find_spec(name) is None]
    if missing:
        raise LeftOut(f"needs {' and '.join(missing)}")
    return url.set(drivername=f"{url.get_backend_name()}+{driver}")


def _in_memory(url: URL) -> bool:
    return url.get_backend_name() == "sqlite" and url.database in {None, "", ":memory:"}


STEPS: list[Callable[[Stage], str]] = [
    commits,
    rolls_back,
    decorates,
    hook_waits,
    joins,
    savepoint_heals,
    plain_says_nothing,
    honest_commit,
    async_twin,
    loads,
]


# -- the tour -------------------------------------------------------------------------------------------------------


def run(url: str | None = None, *, plain: bool = False, rows: int = ROWS) -> int:
    """Run the tour and return the exit status.

    Args:
        url: the database; default: a SQLite file in a temporary directory.
        plain: do not use rich.
        rows: how many the last step loads.
    """
    screen = console(plain)
    with tempfile.TemporaryDirectory(prefix="sessionkit-demo-", ignore_cleanup_errors=True) as folder:
        try:
            address = URL.create("sqlite", database=str(Path(folder) / "demo.db")) if url is None else _checked(url)
            stage = Stage(address, screen, rows)
        except (ArgumentError, ImportError, _Unusable) as error:
            screen.error(f"--url cannot be used: {_first_line(error)}")
            return 2
        try:
            return _tour(stage, STEPS)
        finally:
            stage.engine.dispose()


class _Unusable(Exception):
    """The tour cannot run there."""


def _checked(url: str) -> URL:
    address = make_url(url)
    if getattr(address.get_dialect(), "is_async", False):
        backend = address.get_backend_name()
        example = {"postgresql": "postgresql+psycopg"}.get(backend, backend)
        raise _Unusable(
            f"{address.drivername} is an async driver, and most of the tour is sync code; "
            f"write {example}:// instead, the async step finds its driver by itself"
        )
    return address


def _tour(stage: Stage, steps: Iterable[Callable[[Stage], str]]) -> int:
    screen = stage.screen
    try:
        there = inspect_database(stage.engine)
        for name in (Account.__tablename__, Reading.__tablename__):
            if there.has_table(name):
                screen.error(
                    f"the table {name} exists already, perhaps from a tour that was killed; "
                    "the demo does not touch tables that it has not made: drop it and try again"
                )
                return 2
        Base.metadata.create_all(stage.engine)
        with stage.engine.connect() as connection:
            server = ".".join(map(str, connection.dialect.server_version_info or ()))
    except SQLAlchemyError as error:
        screen.error(f"the database {stage.url!r} cannot be used: {_first_line(error)}")
        return 2
    try:
        screen.title(
            "sessionkit: scopes that tell the truth about their commit",
            f"{stage.engine.dialect.name} {server} at {stage.url!r}; "
            "for each step its code, the SQL that it sends, and what happened",
        )
        rows = [_show(stage, number, step) for number, step in enumerate(steps, 1)]
    finally:
        _drop(stage)
    screen.table("What happened", ("step", "result"), rows)
    failed = sum(1 for mark, _ in rows if mark is False)
    if failed:
        screen.error(f"{failed} of {len(rows)} steps did not do what they promise")
    return 1 if failed else 0


def _drop(stage: Stage) -> None:
    try:
        Base.metadata.drop_all(stage.engine)
    except SQLAlchemyError as error:
        stage.screen.error(f"the table {Account.__tablename__} could not be dropped: {_first_line(error)}")


def _show(stage: Stage, number: int, step: Callable[[Stage], str]) -> tuple[bool | None, tuple[str, str]]:
    title = (step.__doc__ or step.__name__).rstrip(".")
    stage.screen.step(number, title)
    try:
        result = step(stage)
    except LeftOut as reason:
        stage.screen.sql([f"-- left out: {reason}"])
        return None, (title, f"left out: {reason}")
    except Exception as error:  # noqa: BLE001 - the other steps are shown all the same
        what = str(error) if isinstance(error, Misbehaved) else f"{type(error).__name__}: {_first_line(error)}"
        stage.screen.result(what, False)
        return False, (title, what)
    stage.screen.result(result, True)
    return True, (title, result)
