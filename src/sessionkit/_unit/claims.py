"""Claiming a commit marker on a connection of its own, within a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _dialects, commits
from ..isolation import Preset
from .standins import stand_in_for
from .watch import SCOPED
from .watchdog import Watchdog

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine


def claim(engine: Engine, key: str, seconds: float, asynchronous: bool) -> commits.Verdict:
    """Find out on a new connection what became of the unit with the marker `key`, and make sure that it stays so.

    Raises:
        DBAPIError: no answer could be had within `seconds`; a unit that is still open keeps it from being had.
    """
    stand_in = stand_in_for(engine)
    if stand_in is not None:
        # Within what the test takes back; on another connection the claim would wait for it, and stay.
        return commits.claim(stand_in.borrow(), key)
    # The engine may be a unit's, whose transactions are scopes': the claim is one more of them.
    bounded = _dialects.of(engine).engine_for(engine, Preset(lock_timeout=seconds)).execution_options(**{SCOPED: False})
    with (
        bounded.connect() as connection,
        Watchdog(seconds + 0.5, lambda: [connection], asynchronous),  # should the server not keep its own time
    ):
        transaction = connection.begin()
        verdict = commits.claim(connection, key)
        if verdict == "rolled back":  # "committed" is read, and needs no COMMIT of ours, which could be lost as well
            transaction.commit()
        return verdict
