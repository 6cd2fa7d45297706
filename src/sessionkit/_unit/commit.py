"""COMMIT, and finding out what became of it.

Three outcomes exist: committed, rolled back, and unknown, where the connection was lost before the answer came. With
``verify_commit`` the third becomes one of the others. See facts about commit markers in ``commits``.
"""

from __future__ import annotations

import inspect
import logging
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.util import await_only

from .. import _dialects, commits
from .._schemas import translate
from .._waiting import sleep
from ..errors import (
    CommitOutcomeUnknown,
    OptionError,
    Outcome,
    PartialCommit,
    ScopeError,
    UnexpectedRollback,
    classify,
    is_lost,
    told,
)
from .claims import claim
from .savepoints import commit_in_order, connections, is_committed
from .twophase import Ballot
from .verdict import obstacle_on, swallowed
from .watch import committing, failure_log
from .watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from sqlalchemy.engine import Connection, Engine
    from sqlalchemy.orm import Session

    from .unit import Unit

logger = logging.getLogger("sessionkit")

VERIFY_TIMEOUT = 30.0
"""How long an outcome is sought where the unit has no deadline of its own, in seconds."""


def commit(unit: Unit) -> None:
    """Send COMMIT on every connection of a unit, and set ``unit.outcome``.

    Raises:
        CommitOutcomeUnknown: the answer was lost, and nobody was asked or nobody could tell.
        PartialCommit: some databases have committed, or may have, and others have not.
        Exception: what COMMIT raised, if it is certain that nothing was committed.
    """
    session = unit.session
    session.expire_on_commit = False  # it is closed at once: what the body returns stays readable
    _prepare_session(unit)
    held = connections(unit.transaction)
    ballot = _ballot(unit, held)
    sent: list[Connection] = []
    permitted = committing.set(sent)
    try:
        request = unit.request
        if request.commit_timeout is None and not request.verify_commit:  # most units: nothing to surround it with
            _send(unit, held, ballot)
        else:
            with _bounded(unit, held), _marked(unit, held, ballot):
                _send(unit, held, ballot)
        unit.outcome = "committed"
    except BaseException as error:
        if ballot is not None:
            unit.outcome = ballot.outcome
        elif _has_committed(unit):
            unit.outcome = "committed"  # a listener of after_commit has failed
        else:
            outcomes = _outcomes(unit, held, error, sent)
            ends = set(outcomes.values())
            unit.outcome = "unknown" if len(ends) > 1 else ends.pop() if ends else "rolled back"
            if unit.outcome == "unknown" and len(held) > 1:
                _refuse_partial(unit, error, {unit.routes.given(c.engine): end for c, end in outcomes.items()})
        if unit.outcome != "unknown" or not isinstance(error, Exception):
            raise
        _resolve(unit, held, error, ballot)
    else:
        if ballot is None:
            _look_back(unit, held)
    finally:
        committing.reset(permitted)


def _prepare_session(unit: Unit) -> None:
    """Call the listeners of before_commit and flush, as SQLAlchemy does before COMMIT, and look once more."""
    transaction = unit.transaction
    transaction._prepare_impl()
    found = obstacle_on(transaction, unit)
    if found is not None:
        why, error = found
        raise UnexpectedRollback(f"nothing of {unit} was committed: {why}") from error


def _ballot(unit: Unit, held: list[Connection]) -> Ballot | None:
    # One database commits as one by itself, and what has only read has nothing to tear.
    if not unit.twophase or len(held) < 2 or unit.preset.read_only:
        return None
    unit.key = commits.new_key()
    return Ballot(unit.transaction, unit.routes.given, unit.key, unit.asynchronous)


def _send(unit: Unit, held: list[Connection], ballot: Ballot | None) -> None:
    if ballot is not None:
        ballot.commit()
    elif len(held) > 1:
        commit_in_order(unit.transaction)
    unit.session._end_commit()


def _look_back(unit: Unit, held: list[Connection]) -> None:
    """Look whether COMMIT was a silent ROLLBACK: a listener of an engine's "commit" has failed and said nothing.

    It is called after the last look, and nothing of ours can come after it.
    """
    failed = {
        connection: failure.error
        for connection in held
        if (log := failure_log(connection)) is not None
        and (failure := log.first()) is not None
        and _dialects.of(connection).aborts
    }
    if not failed:
        return
    error = next(iter(failed.values()))
    unit.outcome = "rolled back" if len(failed) == len(held) else "unknown"
    if unit.outcome == "unknown":
        ends: dict[Engine, Outcome] = {
            unit.routes.given(each.engine): "rolled back" if each in failed else "committed" for each in held
        }
        _refuse_partial(unit, error, ends)
    raise UnexpectedRollback(f"nothing of {unit} was committed: {swallowed(error)}") from error


@contextmanager
def _bounded(unit: Unit, held: list[Connection]) -> Generator[None, None, None]:
    seconds = unit.request.commit_timeout
    if seconds is None:
        yield
        return
    for connection in held:
        _dialects.of(connection).bound_commit(connection, seconds)
    with Watchdog(seconds, lambda: held, unit.asynchronous):
        yield


@contextmanager
def _marked(unit: Unit, held: list[Connection], ballot: Ballot | None) -> Generator[None, None, None]:
    """Have the COMMIT inside commit the unit's marker as well. A ballot writes its own."""
    if ballot is not None or not unit.request.verify_commit or not held or unit.preset.read_only:
        yield
        return
    if len(held) > 1:
        raise ScopeError(
            f"verify_commit= was asked for, but {unit} has written to {len(held)} databases, which do not commit as "
            "one; use twophase=True, or a unit for each"
        )
    if unit.request.verify_commit is not True:
        yield
        return
    unit.key = commits.new_key()
    (connection,) = held
    together = _dialects.of(connection).with_commit(connection) if is_committed(unit.transaction, connection) else None
    if together is None:
        commits.mark(connection, unit.key)
        yield
        return
    commits.mark(connection, unit.key, together.options)
    try:
        with together:
            yield
    except DBAPIError as error:
        if together.refused:
            commits.explain(error)
        raise


def _has_committed(unit: Unit) -> bool:
    state: Any = getattr(unit.transaction, "_state", None)
    return getattr(state, "name", None) == "COMMITTED"


def _outcomes(
    unit: Unit, held: list[Connection], error: BaseException, sent: list[Connection]
) -> dict[Connection, Outcome]:
    """Return what became on each connection of a commit that has ended with `error`, first where COMMIT was sent."""
    sent = [connection for connection in sent if connection in held]
    if not sent or unit.preset.read_only:
        return dict.fromkeys(held, "rolled back")
    answered = isinstance(error, DBAPIError) and not is_lost(error)
    outcomes: dict[Connection, Outcome] = dict.fromkeys(sent, "committed")
    outcomes[sent[-1]] = "rolled back" if answered else "unknown"
    for connection in held:
        outcomes.setdefault(connection, "rolled back")
    return outcomes


def _refuse_partial(unit: Unit, error: BaseException, outcomes: dict[Engine, Outcome]) -> None:
    told = ", ".join(f"{engine.url!r} is {outcome}" for engine, outcome in outcomes.items())
    message = (
        f"the databases of {unit} did not end alike: {told}; it is not retried. With twophase=True they commit as one"
    )
    if isinstance(error, Exception):
        raise PartialCommit(message, outcomes) from error
    error.add_note(message)


def _resolve(unit: Unit, held: list[Connection], error: Exception, ballot: Ballot | None) -> None:
    """Find out what became of a COMMIT without an answer; return if it was committed."""
    engines = [connection.engine for connection in held]
    unit.give_up_connection()
    verify, key = unit.request.verify_commit, unit.key
    question: Callable[[float], commits.Verdict | None]
    if ballot is not None and verify:
        question = ballot.ask
    elif ballot is None and key is not None:
        question = lambda left: claim(engines[0], key, left, unit.asynchronous)  # noqa: E731
    elif callable(verify):
        question = lambda left: _ask_application(unit, verify, left)  # noqa: E731
    else:
        raise CommitOutcomeUnknown(
            f"the connection of {unit} was lost during COMMIT, so it may have been committed or not; it is not retried. "
            "With verify_commit=True the scope finds out",
            key,
        ) from error
    verdict = None
    try:
        verdict = _ask(unit, question)
        if verdict is not None and ballot is not None:
            ballot.finish(verdict)
    except Exception as failure:
        # What the caller must learn is that the outcome is unknown; why nobody could tell comes second.
        error.add_note(f"besides, asking what became of it failed: {told(failure)}")
        logger.exception("asking what became of a COMMIT of %s failed", unit)
    if verdict is None:
        raise CommitOutcomeUnknown(
            f"the connection of {unit} was lost during COMMIT, and no answer could be had of what became of it; it is "
            f"not retried",
            key,
        ) from error
    unit.outcome = verdict
    if verdict == "rolled back":
        raise error


def _ask(unit: Unit, question: Callable[[float], commits.Verdict | None]) -> commits.Verdict | None:
    """Put the question until it is answered or the time is over."""
    now = time.monotonic()
    ends = now + VERIFY_TIMEOUT if unit.deadline is None else max(unit.deadline, now + 0.5)
    _dialects.deadline.set(ends)
    delay = 0.02
    while True:
        try:
            return question(max(ends - time.monotonic(), 0.05))
        except Exception as error:
            if not isinstance(error, DBAPIError | PoolTimeout | OSError) and not classify(error).retryable:
                raise
            logger.info("asking what became of a COMMIT failed, trying again", exc_info=error)
        left = ends - time.monotonic()
        if left <= 0:
            return None
        sleep(min(delay, left), unit.asynchronous)
        delay = min(delay * 2, 1.0)


def _ask_application(unit: Unit, verify: Any, left: float) -> commits.Verdict | None:
    session = unit.factory()
    sync_session: Session = session.sync_session if unit.asynchronous else session
    if unit.request.schemas is not None:
        translate(sync_session, unit.request.schemas)

    def held() -> list[Connection]:
        transaction = sync_session.get_transaction()
        return [] if transaction is None else connections(transaction)

    try:
        with Watchdog(left, held, unit.asynchronous):
            answer = verify(session)
            if inspect.isawaitable(answer):
                answer = await_only(answer)
    finally:
        sync_session.close()
    if answer is not None and not isinstance(answer, bool):
        raise OptionError(
            f"the function of verify_commit= returned {answer!r}; it returns True (committed), False, or None"
        )
    return None if answer is None else "committed" if answer else "rolled back"
