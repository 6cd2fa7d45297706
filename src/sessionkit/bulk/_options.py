"""The options that all writing verbs share, checked before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

from ..errors import OptionError, UnknownOptionError
from ._result import Method

if TYPE_CHECKING:
    from collections.abc import Callable

OnError = Literal["raise", "collect"]
OnDuplicate = Literal["error", "first", "last"]
Missing = Literal["error", "ignore"]


class WriteOptions(TypedDict, total=False):
    """What every verb that writes can be told.

    Attributes:
        chunk: how many rows are in memory and on their way at once; by default 30,000 of an input that has a length,
            4,000 of one that has not.
        on_progress: called after each chunk with the rows so far, and the length of the input or None.
        progress: True shows a bar on standard error: rows, rate, time left.
        method: the way to the database; "auto" takes the fastest for the size and the shape of the input. "temp" is
            refused where the transaction may be committed in two phases: PostgreSQL cannot prepare one that has used a
            temporary table.
        on_error: "raise" stops at the first bad row; "collect" leaves bad rows out and returns them.
    """

    chunk: int | None
    on_progress: Callable[[int, int | None], object] | None
    progress: bool
    method: Method
    on_error: OnError


@dataclass(frozen=True, slots=True)
class Options:
    """`WriteOptions`, every one of them with a value."""

    chunk: int | None
    on_progress: Callable[[int, int | None], object] | None
    progress: bool
    method: Method
    on_error: OnError


def checked(options: WriteOptions, where: str) -> Options:
    """Return the options, every one of them with a value."""
    known = WriteOptions.__annotations__
    for name in options:
        if name not in known:
            raise UnknownOptionError(name, known, where)
    chunk = options.get("chunk")
    if chunk is not None and chunk < 1:
        raise OptionError(f"chunk={chunk!r}: it is a number of rows, at least 1")
    method = one_of("method", options.get("method", "auto"), get_args(Method))
    on_error = one_of("on_error", options.get("on_error", "raise"), get_args(OnError))
    return Options(
        chunk=chunk,
        on_progress=options.get("on_progress"),
        progress=bool(options.get("progress")),
        method=method,
        on_error=on_error,
    )


def one_of(name: str, value: Any, allowed: tuple[str, ...]) -> Any:
    """Return `value` if it is allowed."""
    if value not in allowed:
        raise OptionError(f"{name}={value!r}; it is one of {', '.join(map(repr, allowed))}")
    return value
