"""What all exceptions of ours have in common: an address, once and at the end; copies and pickles; their names."""

from __future__ import annotations

import asyncio
import copy
import logging
import pickle
import re
import traceback
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm.exc import StaleDataError

from sessionkit import errors
from sessionkit.errors import (
    BulkError,
    CommitOutcomeUnknown,
    HookError,
    OptionError,
    PartialCommit,
    ScopeError,
    SessionKitError,
    UnexpectedRollback,
    UnknownOptionError,
    VersionConflict,
)
from sessionkit.integrations.alembic import MigrationBlocked, MigrationError, NotUpToDate
from sessionkit.version import Conflict, Conflicts

PAGE = "https://sessionkit.readthedocs.io/errors/"


class Thing:
    """A class that can be pickled, in the place of a mapped one."""


class OfTheUser(OptionError):
    """An error that an application has derived, with more arguments than a message."""

    def __init__(self, shop: str, *, retries: int) -> None:
        super().__init__(f"the shop {shop} is closed")
        self.retries = retries


class OfTheUserAndOfSQLAlchemy(ScopeError, IntegrityError):
    """An error of an application's that is SQLAlchemy's too."""


class OfTheUserInBulk(BulkError):
    """A refused row, refined by an application."""


def integrity_error() -> IntegrityError:
    return IntegrityError("INSERT INTO t", {"a": 1}, Exception("it is there already"))


def a_conflict(entity: type = Thing) -> VersionConflict:
    conflict = Conflict(entity, (1,), 1)
    error = VersionConflict.__new__(VersionConflict, "Thing 1 was changed")
    error.conflicts = Conflicts.of([conflict], others=("an INSERT",))
    return error


MADE: list[SessionKitError] = [
    *(kind("no") for kind in [SessionKitError, ScopeError, OptionError, UnexpectedRollback, MigrationError]),
    UnknownOptionError("wit", ["with", "without"], "a scope"),
    CommitOutcomeUnknown("the answer is lost", "the key"),
    HookError([ValueError("one"), KeyError("two")], "committed"),
    PartialCommit("some have", {}),
    a_conflict(),
    BulkError("row 3 is wrong", position=3, row={"a": 1}, column="a"),
    BulkError.of(integrity_error(), "row 3 was refused", position=3, row={"a": 1}),
    BulkError.of(StaleDataError("gone"), "row 3 is gone", position=3, row={"a": 1}),
    MigrationBlocked("in the way", []),
    NotUpToDate("old", ["a"], ["b"]),
    OfTheUser("Bert", retries=3),
    OfTheUserAndOfSQLAlchemy("SELECT", {}, Exception("the driver's")),
    OfTheUserInBulk("row 3", position=3, row={}),
]
NAMES = [type(error).__name__ for error in MADE]


def address_at_the_end(text: str) -> str:
    found = re.findall(r"\(More: (\S+)\)", text)
    assert len(found) == 1, text
    assert text.endswith(f"(More: {found[0]})")
    return str(found[0])


OURS = {*errors.__all__, "MigrationError", "MigrationBlocked", "NotUpToDate"}


@pytest.mark.parametrize("error", MADE, ids=NAMES)
def test_an_error_ends_with_its_address(error: SessionKitError) -> None:
    text = str(error)
    # What is derived elsewhere is told about where its nearest class of ours is.
    nearest = next(kind for kind in type(error).__mro__ if kind.__name__ in OURS)
    assert address_at_the_end(text) == f"{PAGE}#{nearest.__name__}"
    assert text.splitlines()[-1].startswith("(More: ")


@pytest.mark.parametrize("error", MADE, ids=NAMES)
def test_the_arguments_are_the_message_without_the_address(error: SessionKitError) -> None:
    assert "(More: " not in "".join(map(str, error.args))
    assert "(More: " not in repr(error)
    assert errors.message_of(error) == str(error).rpartition("\n")[0]
    if not isinstance(error, OfTheUserAndOfSQLAlchemy):
        assert error.args == (errors.message_of(error),)


@pytest.mark.parametrize("error", MADE, ids=NAMES)
@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copy", "deep", "pickle"]
)
def test_an_error_can_be_copied_and_pickled(error: SessionKitError, again: Any) -> None:
    error = copy.copy(error)
    error.add_note("it was a Monday")
    errors.set_outcome(error, "rolled back")
    other = again(error)
    assert type(other) is type(error)
    assert str(other) == str(error)
    assert other.args == error.args
    assert other.__notes__ == ["it was a Monday"]
    assert errors.outcome_of(other) == "rolled back"
    assert set(other.__dict__) == set(error.__dict__)
    assert repr(other.__dict__) == repr(error.__dict__)


def refuse(number: int) -> None:
    raise MADE[number]


def test_an_error_comes_back_from_another_process() -> None:
    number = NAMES.index("HookError")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        error = pool.submit(refuse, number).exception(timeout=60)
    assert str(error) == str(MADE[number])


def test_a_partial_commit_can_be_copied_with_its_engines() -> None:
    engine = create_engine("sqlite://")
    error = PartialCommit("one is committed", {engine: "committed"})
    assert copy.copy(error).outcomes == error.outcomes == {engine: "committed"}


def test_a_partial_commit_leaves_its_engines_in_their_process() -> None:
    error = pickle.loads(pickle.dumps(PartialCommit("one is committed", {create_engine("sqlite://"): "committed"})))
    assert (error.args, error.outcomes) == (("one is committed",), {})


def test_a_version_conflict_keeps_all_that_it_knows() -> None:
    error = pickle.loads(pickle.dumps(a_conflict()))
    assert error.conflicts == a_conflict().conflicts
    assert error.conflicts.others == ("an INSERT",)


def test_sqlalchemys_own_address_stays_where_the_error_is_its_class_too() -> None:
    lines = str(OfTheUserAndOfSQLAlchemy("SELECT 1", {}, Exception("the driver's"))).splitlines()
    assert lines[-2].startswith("(Background on this error at: https://sqlalche.me/")
    assert lines[-1] == f"(More: {PAGE}#ScopeError)"


def test_a_refused_row_says_neither_the_statement_nor_two_addresses() -> None:
    error = BulkError.of(integrity_error(), "row 3 was refused", position=3, row={})
    assert isinstance(error, IntegrityError)
    assert str(error) == f"row 3 was refused\n(More: {PAGE}#BulkError)"
    assert (type(error).__module__, type(error).__name__) == ("sessionkit.errors", "BulkIntegrityError")


def test_an_error_made_from_the_text_of_another_has_the_address_once() -> None:
    first = OptionError("no such level")
    assert address_at_the_end(str(OptionError(f"in the report: {first}"))) == f"{PAGE}#OptionError"


def test_an_error_without_a_message_is_its_address() -> None:
    assert str(ScopeError()) == f"(More: {PAGE}#ScopeError)"
    assert errors.message_of(ScopeError()) == ""


def test_a_message_that_quotes_an_error_leaves_its_address_out() -> None:
    hook = HookError([OptionError("the level is wrong")], "committed")
    assert "first error was OptionError: the level is wrong\n(More:" in str(hook)
    assert address_at_the_end(str(hook)) == f"{PAGE}#HookError"
    aftermath = Exception("the transaction is aborted")
    errors.set_first(aftermath, OptionError("the level is wrong"))
    assert aftermath.__notes__ == ["the first error in its transaction was OptionError: the level is wrong"]


def test_notes_come_after_the_address() -> None:
    error = ScopeError("no")
    error.add_note("it was not retried")
    printed = "".join(traceback.format_exception(error)).splitlines()
    assert printed == [
        "sessionkit.errors.ScopeError: no",
        f"(More: {PAGE}#ScopeError)",
        "it was not retried",
    ]


def test_a_log_record_says_the_address(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("shop").error("failed: %s", ScopeError("no"))
    assert address_at_the_end(caplog.messages[0]) == f"{PAGE}#ScopeError"


@pytest.mark.parametrize("name", sorted(errors.__all__))
def test_a_public_name_says_that_it_is_of_sessionkit_errors(name: str) -> None:
    value = getattr(errors, name)
    if name != "Outcome":
        assert value.__module__ == "sessionkit.errors"
        assert pickle.loads(pickle.dumps(value)) is value


# What an exception stands for


def cancelled() -> asyncio.CancelledError:
    error = asyncio.CancelledError()
    errors.set_outcome(error, "rolled back")
    return error


def raised_beside(kind: type[BaseException], error: BaseException, module: str = __name__) -> BaseException:
    """Raise `kind` in `module` while `error` is handled, without `from`."""
    source = "def handle(kind, error):\n    try:\n        raise error\n    except BaseException:\n        raise kind\n"
    names: dict[str, Any] = {"__name__": module}
    exec(source, names)
    with pytest.raises(kind) as caught:
        names["handle"](kind, error)
    assert caught.value.__context__ is error
    return caught.value


def test_a_timeout_of_asyncio_stands_for_its_cancellation_on_each_python() -> None:
    """Until 3.11.2 asyncio raises it without `from`; later versions say `raise TimeoutError from ...`."""

    async def unit() -> None:
        async with asyncio.timeout(0):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError as error:
                errors.set_outcome(error, "committed")
                raise

    with pytest.raises(TimeoutError) as caught:
        asyncio.run(unit())
    assert errors.outcome_of(caught.value) == "committed"
    assert errors.outcome_of(raised_beside(TimeoutError, cancelled(), "asyncio.timeouts")) == "rolled back"


@pytest.mark.parametrize("kind", [LookupError, TimeoutError, asyncio.CancelledError])
def test_what_was_raised_while_another_was_handled_has_no_outcome(kind: type[BaseException]) -> None:
    """It may come from anywhere: a mail server that fails too. `raise ... from error` says that it stands for it."""
    assert errors.outcome_of(raised_beside(kind, cancelled())) == "unknown"
    error = kind()
    error.__cause__ = cancelled()
    assert errors.outcome_of(error) == "rolled back"


def test_a_timeout_beside_another_error_than_a_cancellation_has_no_outcome() -> None:
    left = LookupError()
    errors.set_outcome(left, "committed")
    assert errors.outcome_of(raised_beside(TimeoutError, left, "asyncio.timeouts")) == "unknown"


def test_the_outcome_that_is_written_on_an_exception_goes_before_that_of_its_context() -> None:
    error = raised_beside(TimeoutError, cancelled(), "asyncio.timeouts")
    errors.set_outcome(error, "committed")
    assert errors.outcome_of(error) == "committed"


def test_an_option_error_is_not_what_a_view_catches_as_bad_input() -> None:
    for kind in (OptionError, UnknownOptionError):
        assert not issubclass(kind, ValueError | TypeError | LookupError | ScopeError)
        assert issubclass(kind, SessionKitError)
