"""The shape of a table entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Connection, Engine


def _same_engine(engine: Engine) -> Engine:
    return engine


def _never(connection: Connection, driver_connection: Any) -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class Dialect:
    """What one dialect does in its own way.

    Attributes:
        name: SQLAlchemy's name for it.
        engine_for_scopes: derives from the user's engine the one whose transactions begin as a scope promises.
        lost: tells, from what the driver knows without a round trip, that the transaction cannot be committed
            any more, and why; None where all is well or the driver cannot tell.
    """

    name: str
    engine_for_scopes: Callable[[Engine], Engine] = _same_engine
    lost: Callable[[Connection, Any], str | None] = _never
