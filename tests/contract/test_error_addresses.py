"""An error of ours that tells of another one, or is of another class too, has one address: its own, at its end."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from sessionkit import errors, on_commit, on_rollback, set_rollback_only
from tests.contract.breaking import names
from tests.support.models import User

if TYPE_CHECKING:
    from tests.support.doors import Door

pytestmark = pytest.mark.above_drivers


def addresses(error: BaseException) -> list[str]:
    """Return the sections that an error, its notes and its causes lead to, each error's and note's by itself."""
    texts = [str(error), *getattr(error, "__notes__", ())]
    assert all(text.count("(More: ") <= 1 for text in texts)
    found = [text.partition("#")[2].removesuffix(")") for text in texts if "(More: " in text]
    return found + (addresses(error.__cause__) if error.__cause__ is not None else [])


async def test_an_unexpected_rollback_quotes_the_first_error_without_its_address(doors: Door) -> None:
    with pytest.raises(errors.UnexpectedRollback) as caught:
        async with doors.scope():
            with suppress(errors.ScopeError):
                async with doors.scope() as session:
                    await session.commit()
    assert addresses(caught.value) == ["UnexpectedRollback", "ScopeError"]
    assert "the first error was ScopeError: session.commit() was called" in str(caught.value)


async def test_the_wish_of_a_joined_scope_leads_to_the_rollback_that_it_causes(doors: Door) -> None:
    with pytest.raises(errors.UnexpectedRollback) as caught:
        async with doors.scope(), doors.scope() as session:
            doors.call(set_rollback_only, session)
    assert set(addresses(caught.value)) == {"UnexpectedRollback"}


async def test_the_error_of_a_hook_is_quoted_without_its_address(doors: Door) -> None:
    def fail() -> None:
        raise errors.OptionError("the hook was given nonsense")

    with pytest.raises(errors.HookError) as caught:
        async with doors.scope() as session:
            session.add(User(name="ann"))
            doors.call(on_commit, fail, session=session)
    assert addresses(caught.value) == ["HookError", "OptionError"]
    assert await names(doors) == ["ann"]

    with pytest.raises(errors.ScopeError) as first:
        async with doors.scope() as session:
            doors.call(on_rollback, fail, session=session)
            raise errors.ScopeError("the body's own")
    assert addresses(first.value) == ["ScopeError"]
    assert first.value.__notes__ == ["also, a hook failed: OptionError: the hook was given nonsense"]
