"""Whether the code after a ``with attempt`` block goes straight back to the ``for`` that made the attempt.

``for attempt in Session.attempts(): with attempt as session: ...`` replays its body only if control comes back to the
loop. Where the body says ``return`` or ``break``, where something else follows the block, or where another loop is in
between, swallowing a failure would let a caller go on as if the work were done. So an attempt swallows an error only
where the byte code of the function shows that nothing but the next iteration can follow, and where the variable of
that loop holds the attempt. Everywhere else, and on an implementation whose byte code is not known here, the error is
raised. See tests/unit/test_loops.py.
"""

from __future__ import annotations

import dis
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from types import CodeType, FrameType

# What may stand between the call of __exit__ and the jump back: the awaiting of it, the clean-up of the exception.
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
_FOLLOWED = ("JUMP", "SEND", "POP_JUMP_IF_TRUE", "POP_JUMP_FORWARD_IF_TRUE")  # to where they lead
_LOOPS = frozenset({"FOR_ITER", "GET_ANEXT"})
_NONE = frozenset({"LOAD_CONST", "LOAD_COMMON_CONSTANT"})  # what is sent first into what is awaited


class Place(NamedTuple):
    """Where a frame is in its code. Taken down at once: the frame has moved on by the time that it is needed."""

    frame: FrameType
    offset: int


def goes_back(place: Place, attempt: object) -> bool:
    """Tell whether nothing but the next iteration of the loop over `attempt` can follow.

    Args:
        place: where an ``__exit__`` or ``__aexit__`` is being called.
        attempt: what is being left.
    """
    frame = place.frame
    names = loop_variables(frame.f_code, place.offset)
    return any(frame.f_locals.get(name, frame.f_globals.get(name)) is attempt for name in names)


@lru_cache(maxsize=1024)
def loop_variables(code: CodeType, offset: int) -> tuple[str, ...]:
    """Return the variables of the loop whose next iteration is all that follows a call of ``__exit__``, if it is.

    Args:
        code: of the function that is calling it.
        offset: of that call in it: the frame's ``f_lasti``.
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
    return (
        instructions[place].opname in _NONE
        and place + 1 < len(instructions)
        and instructions[place + 1].opname == "SEND"
    )


def _stored(instructions: list[dis.Instruction], places: dict[int, int], place: int) -> tuple[str, ...]:
    """Return the variables that a loop sets as it begins an iteration."""
    names: list[str] = []
    for _ in range(16):
        instruction = instructions[place]
        name, value = instruction.opname, instruction.argval
        if name == "SEND":  # async for: the next item is awaited
            place = places[value]
            continue
        if name.startswith("STORE_FAST_"):  # two instructions in one, the second of which may be another store
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
