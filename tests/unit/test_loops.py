"""An attempt swallows a failure only where nothing but the next iteration of its own loop can follow.

Each function here leaves an attempt in its own way. What is asked is what the byte code of the running Python tells;
how the function goes on after a swallowed failure is seen as well, and must be what was told.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Any

import pytest

from sessionkit._loops import Place, goes_back

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator


class Failed(Exception):
    pass


class Attempt:
    """Asks on leaving, and swallows whatever the answer is."""

    def __init__(self) -> None:
        self.told: bool | None = None

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, *_: object) -> bool:
        self._ask(sys._getframe(1))
        return True

    async def __aenter__(self) -> Attempt:
        return self

    def __aexit__(self, *_: object) -> Awaitable[bool]:
        self._ask(sys._getframe(1))
        return self._swallow()

    async def _swallow(self) -> bool:
        await asyncio.sleep(0)
        return True

    def _ask(self, frame: Any) -> None:
        self.told = goes_back(Place(frame, frame.f_lasti), self)

    def work(self, fails: bool) -> None:
        if fails:
            raise Failed


class Loop:
    """Yields attempts, and knows which of them were followed by another iteration."""

    def __init__(self, count: int = 2) -> None:
        self.attempts = [Attempt() for _ in range(count)]
        self.followed: list[Attempt] = []

    def __iter__(self) -> Iterator[Attempt]:
        for attempt in self.attempts:
            yield attempt
            self.followed.append(attempt)

    async def __aiter__(self) -> AsyncIterator[Attempt]:
        for attempt in self.attempts:
            yield attempt
            self.followed.append(attempt)


# Where the next iteration follows


def plain(loop: Loop, fails: bool) -> None:
    for attempt in loop:
        with attempt:
            attempt.work(fails)


def with_a_name_for_the_session(loop: Loop, fails: bool) -> None:
    for attempt in loop:
        with attempt as session:
            session.work(fails)


def the_result_after_the_loop(loop: Loop, fails: bool) -> object:
    result = None
    for attempt in loop:
        with attempt as session:
            session.work(fails)
            result = 1
    return result


def numbered(loop: Loop, fails: bool) -> None:
    for _number, attempt in enumerate(loop):
        with attempt:
            attempt.work(fails)


def more_than_two_variables(loop: Loop, fails: bool) -> None:
    for (_a, _b), attempt, _c in (((1, 2), attempt, 3) for attempt in loop):
        with attempt:
            attempt.work(fails)


def code_before_it(loop: Loop, fails: bool) -> None:
    for attempt in loop:
        seen = attempt.told
        assert seen is None
        with attempt:
            attempt.work(fails)


def continue_inside(loop: Loop, fails: bool) -> None:
    for attempt in loop:
        with attempt:
            attempt.work(fails)
            continue


def inside_if(loop: Loop, fails: bool) -> None:
    for attempt in loop:
        if loop.attempts:
            with attempt:
                attempt.work(fails)


def inside_try(loop: Loop, fails: bool) -> None:
    for attempt in loop:
        try:
            with attempt:
                attempt.work(fails)
        except LookupError:
            raise AssertionError from None


def loop_with_else(loop: Loop, fails: bool) -> None:
    for attempt in loop:
        with attempt:
            attempt.work(fails)
    else:
        loop.attempts = list(loop.attempts)


def a_with_inside(loop: Loop, fails: bool) -> None:
    for attempt in loop:
        with attempt, nullcontext():
            attempt.work(fails)


def in_an_outer_loop(loop: Loop, fails: bool) -> None:
    for _ in range(1):
        for attempt in loop:
            with attempt:
                attempt.work(fails)


def a_variable_of_an_inner_function(loop: Loop, fails: bool) -> None:
    for attempt in loop:
        with attempt:
            (lambda: attempt.work(fails))()


def a_global_variable(loop: Loop, fails: bool) -> None:
    global _attempt
    for _attempt in loop:
        with _attempt:
            _attempt.work(fails)


_attempt = Attempt()


def in_a_generator(loop: Loop, fails: bool) -> None:
    def generate() -> Iterator[int]:
        for attempt in loop:
            with attempt:
                yield 1
                attempt.work(fails)

    list(generate())


def at_the_top_of_a_module(loop: Loop, fails: bool) -> None:
    source = "for attempt in loop:\n    with attempt:\n        attempt.work(fails)\n"
    exec(source, {"loop": loop, "fails": fails})


def in_a_long_function(loop: Loop, fails: bool) -> None:
    # Jumps of more than a byte have a prefix of their own.
    body = "".join(f"        value = {number}\n" for number in range(400))
    source = f"def f(loop, fails):\n  for attempt in loop:\n    with attempt:\n{body}        attempt.work(fails)\n"
    names: dict[str, Any] = {}
    exec(source, names)
    names["f"](loop, fails)


async def async_for(loop: Loop, fails: bool) -> None:
    async for attempt in loop:
        async with attempt:
            attempt.work(fails)


async def async_with_awaits(loop: Loop, fails: bool) -> None:
    async for attempt in loop:
        await asyncio.sleep(0)
        async with attempt as session:
            await asyncio.sleep(0)
            session.work(fails)


async def async_in_a_sync_loop(loop: Loop, fails: bool) -> None:
    for attempt in loop:
        async with attempt:
            attempt.work(fails)


async def async_the_result_after_the_loop(loop: Loop, fails: bool) -> object:
    result = None
    async for attempt in loop:
        async with attempt as session:
            session.work(fails)
            result = 1
    return result


GO_BACK: list[Callable[[Loop, bool], Any]] = [
    plain,
    with_a_name_for_the_session,
    the_result_after_the_loop,
    numbered,
    more_than_two_variables,
    code_before_it,
    continue_inside,
    inside_if,
    inside_try,
    loop_with_else,
    a_with_inside,
    in_an_outer_loop,
    a_variable_of_an_inner_function,
    a_global_variable,
    in_a_generator,
    at_the_top_of_a_module,
    in_a_long_function,
    async_for,
    async_with_awaits,
    async_in_a_sync_loop,
    async_the_result_after_the_loop,
]


# Where something else follows, at least if the block was left without a failure


def a_statement_after_the_block(loop: Loop, fails: bool) -> None:
    for attempt in loop:
        with attempt:
            attempt.work(fails)
        loop.attempts = loop.attempts + []


def a_break_after_the_block(loop: Loop, fails: bool) -> None:
    for attempt in loop:
        with attempt:
            attempt.work(fails)
        break


def a_return_after_the_block(loop: Loop, fails: bool) -> object:
    for attempt in loop:
        with attempt:
            attempt.work(fails)
        return 1
    return 2


def a_finally_around_the_block(loop: Loop, fails: bool) -> None:
    for attempt in loop:
        try:
            with attempt:
                attempt.work(fails)
        finally:
            loop.attempts = loop.attempts + []


def an_else_of_a_try_around_the_block(loop: Loop, fails: bool) -> None:
    for attempt in loop:
        try:
            with attempt:
                attempt.work(fails)
        except LookupError:
            pass
        else:
            loop.attempts = loop.attempts + []


def a_with_around_the_block(loop: Loop, fails: bool) -> None:
    for attempt in loop:
        with nullcontext(), attempt:
            attempt.work(fails)


def no_loop(loop: Loop, fails: bool) -> None:
    attempt = loop.attempts[0]
    with attempt:
        attempt.work(fails)


def no_loop_and_a_return(loop: Loop, fails: bool) -> object:
    with loop.attempts[0] as attempt:
        attempt.work(fails)
    return 1


def a_while_loop(loop: Loop, fails: bool) -> None:
    attempts = list(loop.attempts)
    while attempts:
        with attempts.pop() as attempt:
            attempt.work(fails)


def a_while_true_loop(loop: Loop, fails: bool) -> None:
    attempts = iter(loop.attempts)
    while True:
        attempt = next(attempts, None)
        if attempt is None:
            return
        with attempt:
            attempt.work(fails)


def the_loop_is_another_one(loop: Loop, fails: bool) -> None:
    for attempt in loop:
        for _ in range(1):
            with attempt:
                attempt.work(fails)


def the_loop_is_over_something_else(loop: Loop, fails: bool) -> None:
    attempt = loop.attempts[0]
    for _ in range(1):
        with attempt:
            attempt.work(fails)


def the_variable_is_set_anew(loop: Loop, fails: bool) -> None:
    for attempt in loop:
        entered = attempt
        attempt = Attempt()
        with entered:
            entered.work(fails)


def an_exit_stack(loop: Loop, fails: bool) -> None:
    for attempt in loop:
        with ExitStack() as stack:
            stack.enter_context(attempt)
            attempt.work(fails)


def a_call_by_hand(loop: Loop, fails: bool) -> None:
    for attempt in loop:
        attempt.__enter__()
        loop.attempts[0].told = bool(attempt.__exit__(None, None, None)) and attempt.told


async def async_a_statement_after_the_block(loop: Loop, fails: bool) -> None:
    async for attempt in loop:
        async with attempt:
            attempt.work(fails)
        await asyncio.sleep(0)


async def async_no_loop(loop: Loop, fails: bool) -> None:
    async with loop.attempts[0] as attempt:
        attempt.work(fails)


async def async_the_loop_is_another_one(loop: Loop, fails: bool) -> None:
    async for attempt in loop:
        for _ in range(1):
            async with attempt:
                attempt.work(fails)


GO_ON: list[Callable[[Loop, bool], Any]] = [
    a_statement_after_the_block,
    a_break_after_the_block,
    a_return_after_the_block,
    a_finally_around_the_block,
    an_else_of_a_try_around_the_block,
    a_with_around_the_block,
    no_loop,
    no_loop_and_a_return,
    a_while_loop,
    a_while_true_loop,
    the_loop_is_another_one,
    the_loop_is_over_something_else,
    the_variable_is_set_anew,
    an_exit_stack,
    async_a_statement_after_the_block,
    async_no_loop,
    async_the_loop_is_another_one,
]


def run(body: Callable[[Loop, bool], Any], fails: bool) -> Loop:
    loop = Loop()
    result = body(loop, fails)
    if asyncio.iscoroutine(result):
        asyncio.run(result)
    return loop


def name(body: Callable[..., Any]) -> str:
    return body.__name__


@pytest.mark.parametrize("fails", [True, False], ids=["the body fails", "the commit would fail"])
@pytest.mark.parametrize("body", GO_BACK, ids=name)
def test_it_is_told_where_the_next_iteration_follows(body: Callable[[Loop, bool], Any], fails: bool) -> None:
    loop = run(body, fails)
    assert [attempt.told for attempt in loop.attempts] == [True, True]
    assert loop.followed == loop.attempts


@pytest.mark.parametrize("fails", [True, False], ids=["the body fails", "the commit would fail"])
@pytest.mark.parametrize("body", GO_ON, ids=name)
def test_it_is_not_told_where_anything_else_can_follow(body: Callable[[Loop, bool], Any], fails: bool) -> None:
    loop = run(body, fails)
    assert loop.attempts[0].told is False


# Where it depends on how the block is left


def a_return_inside(loop: Loop, fails: bool) -> object:
    for attempt in loop:
        with attempt:
            attempt.work(fails)
            return 1
    return 2


def a_return_of_what_was_computed_inside(loop: Loop, fails: bool) -> object:
    for attempt in loop:
        with attempt as session:
            return session.work(fails)
    return 2


def a_break_inside(loop: Loop, fails: bool) -> None:
    for attempt in loop:
        with attempt:
            attempt.work(fails)
            break


def a_break_inside_in_an_outer_loop(loop: Loop, fails: bool) -> None:
    for _ in range(1):
        for attempt in loop:
            with attempt:
                attempt.work(fails)
                break


async def async_a_return_inside(loop: Loop, fails: bool) -> object:
    async for attempt in loop:
        async with attempt:
            attempt.work(fails)
            return 1
    return 2


async def async_a_break_inside(loop: Loop, fails: bool) -> None:
    async for attempt in loop:
        async with attempt:
            attempt.work(fails)
            break


LEAVE: list[Callable[[Loop, bool], Any]] = [
    a_return_inside,
    a_return_of_what_was_computed_inside,
    a_break_inside,
    a_break_inside_in_an_outer_loop,
    async_a_return_inside,
    async_a_break_inside,
]


@pytest.mark.parametrize("body", LEAVE, ids=name)
def test_a_body_that_leaves_the_loop_goes_back_only_after_its_own_failure(body: Callable[[Loop, bool], Any]) -> None:
    failing = run(body, True)
    assert [attempt.told for attempt in failing.attempts] == [True, True]
    assert failing.followed == failing.attempts
    assert run(body, False).attempts[0].told is False


def test_a_place_that_is_no_call_of_an_exit_goes_nowhere() -> None:
    loop = Loop()
    for attempt in loop:
        frame = sys._getframe()
        assert not goes_back(Place(frame, frame.f_lasti), attempt)
        assert not goes_back(Place(frame, 10**6), attempt)
