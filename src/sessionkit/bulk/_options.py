"""The options that all writing verbs share, checked before anything is sent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast, get_args

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
        max_rejected: with "collect", how many rows may be left out: a number, or as a float the share of the rows read so
            far, which is looked at once 1,000 were read. Past it the call raises a `BulkError` with the `rejected` rows,
            and nothing of it is written. None leaves out as many as there are.
    """

    chunk: int | None
    on_progress: Callable[[int, int | None], object] | None
    progress: bool
    method: Method
    on_error: OnError
    max_rejected: int | float | None


@dataclass(frozen=True, slots=True)
class BulkOptions:
    """`WriteOptions`, every one of them with a value."""

    chunk: int | None
    on_progress: Callable[[int, int | None], object] | None
    progress: bool
    method: Method
    on_error: OnError
    max_rejected: int | float | None


def checked(options: WriteOptions, where: str) -> BulkOptions:
    """Return the options, every one of them with a value."""
    known = WriteOptions.__annotations__
    for name in options:
        if name not in known:
            raise UnknownOptionError(name, known, where)
    chunk = options.get("chunk")
    if chunk is not None and (not isinstance(cast("object", chunk), int) or chunk < 1):
        raise OptionError(f"chunk={chunk!r}: it is a number of rows, at least 1")
    method = one_of("method", options.get("method", "auto"), get_args(Method))
    on_error = one_of("on_error", options.get("on_error", "raise"), get_args(OnError))
    max_rejected = options.get("max_rejected")
    if max_rejected is not None:
        _check_limit(max_rejected, on_error)
    return BulkOptions(
        chunk=chunk,
        on_progress=options.get("on_progress"),
        progress=bool(options.get("progress")),
        method=method,
        on_error=on_error,
        max_rejected=max_rejected,
    )


def _check_limit(limit: float, on_error: OnError) -> None:
    if on_error != "collect":
        raise OptionError(
            f"max_rejected={limit!r} was asked for, but on_error={on_error!r} leaves no row out; say on_error='collect'"
        )
    most: Any = {int: math.inf, float: 1.0}.get(type(limit))
    if most is None or not 0 <= limit <= most:
        raise OptionError(
            f"max_rejected={limit!r}: it is a number of rows (an int, 0 or more), or a share of them (a float, 0.0 to 1.0)"
        )


def one_of(name: str, value: Any, allowed: tuple[str, ...]) -> Any:
    """Return `value` if it is allowed."""
    if value not in allowed:
        raise OptionError(f"{name}={value!r}; it is one of {', '.join(map(repr, allowed))}")
    return value
