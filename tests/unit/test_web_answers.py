"""What a client is told of an error, and when a request is run again: decisions, without a framework."""

from __future__ import annotations

from asyncio import CancelledError
from http import HTTPStatus
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm.exc import StaleDataError

from sessionkit import errors
from sessionkit.integrations._web import RequestUnit, Rules, Turn, answer_to, on_error_status
from sessionkit.retry import Retry


class Driver(Exception):
    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.sqlstate = code


def of_database(code: str, kind: Any = OperationalError) -> Exception:
    error: Exception = kind("UPDATE", {}, Driver(code))
    return error


def swallowed(cause: Exception) -> Exception:
    error = errors.UnexpectedRollback("nothing was committed")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (StaleDataError("stale"), 409),
        (swallowed(StaleDataError("stale")), 409),
        (errors.MalformedETag("no quotes"), 400),
        (of_database("40001"), 503),
        (of_database("40P01"), 503),
        (of_database("57P01"), 503),
        (swallowed(of_database("40001")), 503),
        (of_database("23505", IntegrityError), None),
        (errors.CommitOutcomeUnknown("nobody knows"), None),
        (errors.UnexpectedRollback("no error to be seen"), None),
        (errors.HookError([ValueError()], "committed"), None),
        (ValueError("a bug"), None),
    ],
)
def test_an_error_has_the_status_that_http_has_for_it(error: Exception, status: int | None) -> None:
    answer = answer_to(error, if_match=False)
    assert (None if answer is None else answer.status) == status
    if answer is not None:
        assert answer.reason == HTTPStatus(answer.status).phrase
        assert answer.headers == ({"Retry-After": "1"} if status == 503 else {})
    with_precondition = answer_to(error, if_match=True)
    assert (None if with_precondition is None else with_precondition.status) == (412 if status == 409 else status)


def request(method: str = "PUT", if_match: bool = False, retry: Retry | None = None) -> RequestUnit:
    return RequestUnit(Rules((), on_error_status, retry, frozenset({"PUT"})), method, "/", if_match)


def rolled_back(error: Exception) -> Exception:
    errors.set_outcome(error, "rolled back")
    return error


def test_a_request_is_run_again_as_often_as_its_policy_says() -> None:
    asked = request(retry=Retry(3, wait=0))
    for again in (True, True, False):
        assert asked.again(rolled_back(StaleDataError("again"))) is again
        if again:
            assert asked.next() == (None, 0.0)


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        (request(), rolled_back(StaleDataError("no policy"))),
        (request("POST", retry=Retry(3)), rolled_back(StaleDataError("not idempotent"))),
        (request(if_match=True, retry=Retry(3)), rolled_back(StaleDataError("the precondition has failed"))),
        (request(retry=Retry(3)), rolled_back(ValueError("nothing that passes"))),
        (request(retry=Retry(3)), StaleDataError("what became of it is not known")),
    ],
)
def test_a_request_is_not_run_again(asked: RequestUnit, error: Exception) -> None:
    assert not asked.again(error)


def test_what_a_precondition_does_not_speak_of_is_retried_all_the_same() -> None:
    assert request(if_match=True, retry=Retry(3)).again(rolled_back(of_database("40001")))


def test_a_turn_of_which_a_part_has_committed_is_not_run_again() -> None:
    turn = Turn(request(retry=Retry(3)))
    turn._lasting = ["first"]
    assert turn._ended("first", None, None) is None
    error = turn._ended("second", rolled_back(StaleDataError("again")), None)
    assert error is not None
    assert error.__notes__ == ["'first' of the same request had already committed"]
    assert not turn.again(error)
    assert turn.answer(error) is None  # a client that is told of a conflict may repeat what has been saved


def test_a_turn_whose_other_part_leaves_nothing_behind_is_run_again() -> None:
    turn = Turn(request(retry=Retry(3)))
    assert turn._ended("only reads", None, None) is None
    error = turn._ended("second", rolled_back(StaleDataError("again")), None)
    assert error is not None
    assert turn.answer(error) is not None
    assert turn.again(error)


def test_a_cancellation_while_a_turn_is_rolled_back_is_not_lost() -> None:
    cancelled, error = CancelledError(), ValueError()
    assert Turn(request())._ended("scope", cancelled, error) is cancelled
    assert Turn(request())._ended("scope", TypeError(), error) is error
