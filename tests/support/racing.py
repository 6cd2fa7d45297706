"""Units of `sessionkit.testing.races`, written once for all doors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sessionkit.testing import races
from tests.support.neutral import drive, raw

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from sessionkit.testing import Races
    from tests.support.doors import Door

__all__ = ["alone", "as_unit", "race"]


def as_unit(doors: Door, body: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Any]:
    """Return the function that a user of this door would write: `def` or `async def`."""
    if doors.colour == "async":
        return body

    def unit(*args: Any) -> Any:
        return raw(drive(body(*args)))

    unit.__name__ = body.__name__
    return unit


async def alone(doors: Door) -> None:
    """Close all connections to the database, so that it can be copied."""
    engine = doors.engine
    await engine.dispose() if doors.colour == "async" else engine.dispose()
    doors.database.observer.dispose()


async def race(
    doors: Door,
    *bodies: Callable[[], Coroutine[Any, Any, Any]],
    factories: Any = None,
    setup: Any = None,
    **options: Any,
) -> Races:
    """Call `races` with units that are written as bodies of tests are."""
    await alone(doors)
    return races(
        *(as_unit(doors, body) for body in bodies),
        factories=[doors.Session] if factories is None else factories,
        setup=None if setup is None else as_unit(doors, setup),
        **options,
    )
