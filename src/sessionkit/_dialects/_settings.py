"""The shape of the table entries about what a transaction is set to: settings and role."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy.engine import Connection

    Values = Mapping[str, str | None]
    """The texts of settings by their names, ``"role"`` last; None: the default."""

    Beginning = Any  # _base.Beginning, which stands on this file


@dataclass(frozen=True, slots=True)
class Settings:
    """How a transaction is set to values that end with it, and with a savepoint in which they were set.

    Attributes:
        begin: returns how a transaction begins that is set to values, from how it would begin without.
        change: sets other values, and returns those of before; in one statement.
        put_back: sets those again; in one statement.
        drop_role: goes back to the role of who has connected, once what the transaction has put off is checked.
    """

    begin: Callable[[Beginning, Values], Beginning]
    change: Callable[[Connection, Values], Values]
    put_back: Callable[[Connection, Values], None]
    drop_role: Callable[[Connection], None]
