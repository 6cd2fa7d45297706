"""Whether the code after a ``with attempt`` block goes straight back to the ``for`` that made the attempt.

Python asks ``__exit__`` whether to swallow an error, but does not say what happens then. Two functions show why it matters::

    def rename():                                   def welcome():
        for attempt in Session.attempts():              for attempt in Session.attempts():
            with attempt as session:                        with attempt as session:
                session.get_one(User, 7).name = "ann"           session.add(User(name="ann"))
                return "renamed"                            send_mail("welcome")

If COMMIT fails in ``rename`` and ``__exit__`` swallows the error, Python goes on with the ``return`` that had begun: the
caller reads "renamed", there is no second attempt, and nothing is committed. In ``welcome`` it goes on to send the mail,
once for each failed attempt. So an attempt swallows an error only if the byte code of the function shows that nothing but
the next iteration can follow, and if the variable of that loop holds the attempt. Otherwise the error is raised, as it is
on an interpreter whose byte code this module does not know. See tests/unit/test_loops.py.
"""

from __future__ import annotations

import dis
import platform
import sys
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from types import CodeType, FrameType

KNOWN = sys.implementation.name == "cpython" and (3, 11) <= sys.version_info[:2] <= (3, 15)
"""Whether this module knows the byte code of this interpreter: tests/unit/test_loops.py has run on each of these."""

# What may come between the call of __exit__ and the jump back: awaiting it, and cleaning up the exception.
_PASSED_OVER = frozenset(
    {
        "CACHE",
        "CALL",
        "END_SEND",
        "EXTENDED_ARG",
        "GET_AWAITABLE",
        "NOP",
        "NOT_TAKEN",
        "POP_EXCEPT",
        "POP_TOP",
        "PRECALL",
        "TO_BOOL",
        "WITH_EXCEPT_START",
    }
)
_FOLLOWED = ("JUMP", "SEND", "POP_JUMP_IF_TRUE", "POP_JUMP_FORWARD_IF_TRUE")  # go on where they lead
_LOOPS = frozenset({"FOR_ITER", "GET_ANEXT"})
_NONE = frozenset({"LOAD_CONST", "LOAD_COMMON_CONSTANT"})  # the None that an `await` sends first
# The instructions that drop a loop's iterator without an exception: `break`, `return`, and the end of the loop.
_DROPS = frozenset({"POP_TOP", "POP_ITER", "END_FOR", "END_ASYNC_FOR", "FOR_ITER", "SWAP"})


def warn_if_unknown() -> None:
    """Warn if a loop over attempts can swallow no failure on this interpreter."""
    if not KNOWN:
        warnings.warn(
            f"attempts() raises each failure on {platform.python_implementation()} {platform.python_version()} instead of "
            "running the body again: it reads byte code to find out whether the next attempt follows, and knows only "
            "that of CPython 3.11 to 3.15; decorate a function with @Session.scope(retry=...), or call Session.run(fn), "
            "which retry everywhere",
            RuntimeWarning,
            stacklevel=2,
        )


class Place(NamedTuple):
    """Where a frame is in its code. Recorded at once, because the frame has moved on by the time we need it."""

    frame: FrameType
    offset: int


def goes_back(place: Place, attempt: object) -> bool:
    """Return whether nothing but the next iteration of the loop over `attempt` can follow.

    Args:
        place: where an ``__exit__`` or ``__aexit__`` is being called.
        attempt: the attempt that is being left.
    """
    if not KNOWN:
        return False
    frame = place.frame
    names = loop_variables(frame.f_code, place.offset)
    return any(frame.f_locals.get(name, frame.f_globals.get(name)) is attempt for name in names)


def drops_quietly(frame: FrameType) -> bool:
    """Return whether a frame that drops the iterator of its loop now leaves the loop without an exception.

    Python does not show an exception that was raised and not yet handled, but then the frame is still at the instruction
    that raised it. An iterator with a name outlives its loop, so for it this is never known, and the answer is False.
    """
    return _instruction_at(frame.f_code, frame.f_lasti) in _DROPS


@lru_cache(maxsize=256)
def _instruction_at(code: CodeType, offset: int) -> str | None:
    return next((each.opname for each in dis.get_instructions(code) if each.offset == offset), None)


@lru_cache(maxsize=1024)
def loop_variables(code: CodeType, offset: int) -> tuple[str, ...]:
    """Return the variables of the loop whose next iteration is all that can follow a call of ``__exit__``.

    Args:
        code: the code of the function that makes the call.
        offset: where in it the call is: the frame's ``f_lasti``.

    Returns:
        The names; empty if something else can follow.
    """
    instructions = list(dis.get_instructions(code))
    places = {instruction.offset: place for place, instruction in enumerate(instructions)}
    place = places.get(offset)
    for _ in range(32):
        if place is None or place >= len(instructions):
            break
        name = instructions[place].opname
        if name in _LOOPS:
            return _stored(instructions, places, place + 1)
        if name.startswith(_FOLLOWED):
            place = places.get(instructions[place].argval)
        elif name in _PASSED_OVER or _starts_await(instructions, place):
            place += 1
        else:
            break
    return ()


def _starts_await(instructions: list[dis.Instruction], place: int) -> bool:
    """Return whether this instruction leads to the SEND of an ``await``."""
    names = [instruction.opname for instruction in instructions[place : place + 3]]
    if names[0] == "PUSH_NULL":  # Python 3.15 and later
        del names[0]
    return len(names) > 1 and names[0] in _NONE and names[1] == "SEND"


def _stored(instructions: list[dis.Instruction], places: dict[int, int], place: int) -> tuple[str, ...]:
    """Return the variables that a loop sets when it begins an iteration."""
    names: list[str] = []
    for _ in range(16):
        instruction = instructions[place]
        name, value = instruction.opname, instruction.argval
        if name == "SEND":  # async for: the next item is awaited
            place = places[value]
            continue
        if name.startswith("STORE_FAST_"):  # two instructions in one; the second may be another store
            names += value if name == "STORE_FAST_STORE_FAST" else value[:1]
            if name == "STORE_FAST_LOAD_FAST":
                break
        elif name in {"STORE_FAST", "STORE_NAME", "STORE_GLOBAL", "STORE_DEREF"}:
            names.append(value)
        elif name not in {"UNPACK_SEQUENCE", "END_SEND", "NOT_TAKEN", "CACHE"} and not _starts_await(
            instructions, place
        ):
            break
        place += 1
    return tuple(names)
