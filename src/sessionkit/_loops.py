"""Whether the code after a ``with`` block goes straight back to its ``for``.

``for attempt in Session.attempts(): with attempt as session: ...`` replays its body only if control comes back to the
loop. Where the body says ``return`` or ``break``, or where something else follows the block, swallowing a failure
would let a caller go on as if the work were done. So an attempt swallows an error only where the byte code of the
function shows that nothing but the next iteration can follow; everywhere else, and on an implementation whose byte
code is not known here, the error is raised. See tests/unit/test_loops.py.
"""

from __future__ import annotations

import dis
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import CodeType

# What may stand between the call of __exit__ and the jump back: the awaiting of it, the clean-up of the exception.
_PASSED_OVER = frozenset(
    {
        "CACHE",
        "CALL",
        "CALL_FUNCTION",
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
_AWAIT = frozenset({"LOAD_CONST", "LOAD_SMALL_INT"})


@lru_cache(maxsize=1024)
def goes_back(code: CodeType, offset: int) -> bool:
    """Tell whether code goes on with the next iteration of its loop.

    Args:
        code: of the function that is calling an ``__exit__`` or ``__aexit__``.
        offset: of that call in it: the frame's ``f_lasti``.
    """
    instructions = list(dis.get_instructions(code))
    places = {instruction.offset: place for place, instruction in enumerate(instructions)}
    place = places.get(offset)
    for _ in range(32):
        if place is None or place >= len(instructions):
            return False
        name = instructions[place].opname
        following = instructions[place + 1].opname if place + 1 < len(instructions) else ""
        if name in _LOOPS:
            return True
        if name.startswith(_FOLLOWED):
            place = places.get(instructions[place].argval)
        elif name in _PASSED_OVER or (name in _AWAIT and following == "SEND"):
            place += 1
        else:
            return False
    return False
