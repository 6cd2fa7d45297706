"""The options of all writing verbs, checked before anything is sent."""

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
    """The options of every verb that writes.

    Attributes:
        chunk: the number of rows in memory and sent at once; by default 30,000 if the input has a length, 4,000 if not.
        on_progress: called after each chunk with the number of rows so far, and the length of the input or None.
        progress: True shows a bar on standard error: rows, rate, time left.
        method: how to send the rows; "auto" picks the fastest for the size and shape of the input. "temp" is refused if the
            transaction may be committed in two phases: PostgreSQL cannot prepare a transaction that has used a temporary
            table.
        on_error: "raise" stops at the first bad row; "collect" skips bad rows and returns them.
        max_rejected: with "collect", how many rows may be skipped: a number, or, as a float, a share of the rows read so far,
            checked once 1,000 have been read. Above it the call raises a `BulkError` with the `rejected` rows, and writes
            nothing. None means no limit.
    """

    chunk: int | None
    on_progress: Callable[[int, int | None], object] | None
    progress: bool
    method: Method
    on_error: OnError
    max_rejected: int | float | None


@dataclass(frozen=True, slots=True)
class BulkOptions:
    """`WriteOptions` with a value for every option."""

    chunk: int | None
    on_progress: Callable[[int, int | None], object] | None
    progress: bool
    method: Method
    on_error: OnError
    max_rejected: int | float | None


def checked(options: WriteOptions, where: str) -> BulkOptions:
    """Return the options with a value for each."""
    known = WriteOptions.__annotations__
    for name in options:
        if name not in known:
            raise UnknownOptionError(name, known, where)
    chunk = options.get("chunk")
    if chunk is not None and (not isinstance(cast("object", chunk), int) or chunk < 1):
        raise OptionError(f"chunk={chunk!r} is not allowed; give a number of rows, at least 1")
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
            f"max_rejected={limit!r} was asked for, but on_error={on_error!r} never skips a row; use on_error='collect'"
        )
    most: Any = {int: math.inf, float: 1.0}.get(type(limit))
    if most is None or not 0 <= limit <= most:
        raise OptionError(
            f"max_rejected={limit!r} is not allowed; give a number of rows (an int, 0 or more) or a share (a float, "
            "0.0 to 1.0)"
        )


def one_of(name: str, value: Any, allowed: tuple[str, ...]) -> Any:
    """Return `value` if it is allowed."""
    if value not in allowed:
        raise OptionError(f"{name}={value!r} is not allowed; use one of {', '.join(map(repr, allowed))}")
    return value
