"""COMMIT, and finding out what became of it.

Three outcomes exist: committed, rolled back, and unknown, where the connection was lost before the answer came. With
``verify_commit`` the third becomes one of the others. See facts about commit markers in ``commits``.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only

from . import _dialects, commits
from ._savepoints import connections
from ._watch import SCOPED, commit_was_sent, committing
from ._watchdog import Watchdog
from .errors import CommitOutcomeUnknown, OptionError, Outcome, ScopeError, classify
from .isolation import Preset

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

    from ._unit import Unit

logger = logging.getLogger("sessionkit")

VERIFY_TIMEOUT = 30.0
"""How long an outcome is sought where the unit has no deadline of its own, in seconds."""


def commit(unit: Unit) -> None:
    """Send COMMIT on every connection of a unit, and set ``unit.outcome``.

    Raises:
        CommitOutcomeUnknown: the answer was lost, and nobody was asked or nobody could tell.
        Exception: what COMMIT raised, if it is certain that nothing was committed.
    """
    held = connections(unit.transaction)
    key = _mark(unit, held)
    unit.session.expire_on_commit = False  # it is closed at once: what the body returns stays readable
    permitted = committing.set(True)
    try:
        if unit.request.commit_timeout is None:
            unit.session._end_commit()
        else:
            _bounded_commit(unit, held, unit.request.commit_timeout)
        unit.outcome = "committed"
    except BaseException as error:
        unit.outcome = _outcome_after(unit, error)
        if unit.outcome != "unknown" or not isinstance(error, Exception):
            raise
        _resolve(unit, held, key, error)
    finally:
        committing.reset(permitted)


def _bounded_commit(unit: Unit, held: list[Connection], seconds: float) -> None:
    for connection in held:
        _dialects.of(connection).bound_commit(connection, seconds)
    with Watchdog(seconds, lambda: held, unit.asynchronous):
        unit.session._end_commit()


def _mark(unit: Unit, held: list[Connection]) -> str | None:
    if unit.request.verify_commit is not True or not held or unit.preset.read_only:
        return None
    if len(held) > 1:
        raise ScopeError(
            f"verify_commit=True was asked for, but {unit} has written to {len(held)} databases, which do not commit "
            f"as one; "
            "use twophase=True, or a unit for each"
        )
    unit.key = commits.new_key()
    commits.mark(held[0], unit.key)
    return unit.key


def _outcome_after(unit: Unit, error: BaseException) -> Outcome:
    state: Any = getattr(unit.transaction, "_state", None)
    if getattr(state, "name", None) == "COMMITTED":
        return "committed"  # a listener of after_commit has failed
    sent = [connection for connection in connections(unit.transaction) if commit_was_sent(connection)]
    if not sent or unit.preset.read_only:
        return "rolled back"
    if isinstance(error, DBAPIError) and not error.connection_invalidated and not classify(error).ambiguous:
        return "rolled back"  # the server has answered, with an error
    return "unknown"


def _resolve(unit: Unit, held: list[Connection], key: str | None, error: Exception) -> None:
    """Find out what became of a COMMIT without an answer; return if it was committed."""
    engines = [connection.engine for connection in held]
    unit.give_up_connection()
    verify = unit.request.verify_commit
    if key is not None:
        verdict = _ask(unit, lambda left: _claim(unit, engines[0], key, left))
    elif callable(verify):
        verdict = _ask(unit, lambda _: _ask_application(unit, verify))
    else:
        raise CommitOutcomeUnknown(
            f"the connection of {unit} was lost during COMMIT, so it may have been committed or not; it is not "
            f"retried. "
            "With verify_commit=True the scope finds out"
        ) from error
    if verdict is None:
        raise CommitOutcomeUnknown(
            f"the connection of {unit} was lost during COMMIT, and no answer could be had of what became of it; it is "
            f"not retried",
            key,
        ) from error
    unit.outcome = verdict
    if verdict == "rolled back":
        raise error


def _ask(unit: Unit, question: Any) -> commits.Verdict | None:
    """Put the question until it is answered or the time is over."""
    now = time.monotonic()
    ends = now + VERIFY_TIMEOUT if unit.deadline is None else max(unit.deadline, now + 0.5)
    delay = 0.02
    while True:
        try:
            verdict: commits.Verdict | None = question(ends - time.monotonic())
        except (DBAPIError, OSError) as error:
            logger.info("asking what became of a COMMIT failed, trying again", exc_info=error)
        else:
            return verdict
        left = ends - time.monotonic()
        if left <= 0:
            return None
        sleep(min(delay, left), unit.asynchronous)
        delay = min(delay * 2, 1.0)


def sleep(seconds: float, asynchronous: bool) -> None:
    """Wait, in the colour of the unit."""
    if asynchronous:
        await_only(asyncio.sleep(seconds))
    else:
        time.sleep(seconds)


def _claim(unit: Unit, engine: Engine, key: str, left: float) -> commits.Verdict:
    bound = max(left, 0.05)
    # The engine is the unit's, whose transactions are scopes': the claim is one more of them.
    bounded = _dialects.of(engine).engine_for(engine, Preset(lock_timeout=bound)).execution_options(**{SCOPED: False})
    with bounded.connect() as connection, Watchdog(bound, lambda: [connection], unit.asynchronous), connection.begin():
        return commits.claim(connection, key)


def _ask_application(unit: Unit, verify: Any) -> commits.Verdict | None:
    session = unit.factory()
    try:
        answer = verify(session)
        if inspect.isawaitable(answer):
            answer = await_only(answer)
    finally:
        (session.sync_session if unit.asynchronous else session).close()
    if answer is not None and not isinstance(answer, bool):
        raise OptionError(
            f"the function of verify_commit= returned {answer!r}; it returns True (committed), False, or None"
        )
    return None if answer is None else "committed" if answer else "rolled back"
