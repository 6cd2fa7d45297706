"""The stage of the tour: it shows and runs a piece of code for a step, and checks what the step promises."""

from __future__ import annotations

import inspect
import textwrap
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import CheckConstraint, Engine, String, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sessionkit._spi import _dialects
from sessionkit.factory import sessionmaker
from sessionkit.version import Versioned

from .._ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import URL

    from .._console import Console

__all__ = ["ROWS", "Account", "Base", "LeftOut", "Misbehaved", "Price", "Ran", "Stage", "first_line", "in_memory"]

ROWS = 10_000
"""The default number of rows to load."""


class Base(DeclarativeBase):
    """Base of the demo's own tables."""


class Account(Base):
    """Money, so that it matters whether half of a transfer is committed."""

    __tablename__ = "sessionkit_demo"
    __table_args__ = (CheckConstraint("balance >= 0", name="sessionkit_demo_balance"),)

    owner: Mapped[str] = mapped_column(String(20), primary_key=True)
    balance: Mapped[int]


class Price(Versioned, Base):
    """What two people may want to change at the same time."""

    __tablename__ = "sessionkit_demo_price"

    product: Mapped[str] = mapped_column(String(20), primary_key=True)
    cents: Mapped[int]


class Misbehaved(Exception):
    """A step did not do what it promises."""


class LeftOut(Exception):
    """A step cannot be shown here; the message says why."""


class Ran(NamedTuple):
    """The result of a piece of code."""

    sql: list[str]
    error: BaseException | None
    value: Any = None


class Stage:
    """What the steps work with: the engine, the factory, and the screen."""

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
            except Exception as raised:  # noqa: BLE001 - shown, and judged by the step
                error = raised
        self.screen.sql(self.ledger.lines)
        if error is not None:
            self.screen.sql([f"-- raised {type(error).__name__}: {first_line(error)}"])
        return Ran(self.ledger.lines, error, value)

    def balances(self) -> dict[str, int]:
        """Return what is committed."""
        with self.ledger.looking_away(), self.engine.connect() as connection:
            rows = connection.execute(select(Account.owner, Account.balance).order_by(Account.owner))
            return {row.owner: row.balance for row in rows}

    def expect(self, fact: object, otherwise: str) -> None:
        """Check the promise of a step.

        Raises:
            Misbehaved: the step broke it.
        """
        if not fact:
            raise Misbehaved(otherwise)

    def expect_balances(self, **balances: int) -> None:
        """Check what must be committed now."""
        found = self.balances()
        self.expect(found == balances, f"the database holds {found}, but it should hold {balances}")


def _body_of(code: Callable[[], object]) -> str:
    try:
        lines, _ = inspect.getsourcelines(code)
    except OSError:  # an installation without sources
        return "(the source code is not available)"
    body = textwrap.dedent("".join(lines[1:])).rstrip()
    return "\n".join(line.partition("  # noqa")[0] for line in body.splitlines())


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]


def in_memory(engine: Engine) -> bool:
    """Return whether the database is in the memory of this process."""
    return _dialects.of(engine).lives_in_memory(engine)
