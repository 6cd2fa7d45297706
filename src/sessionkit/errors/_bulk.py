"""The error of a row in a bulk call, which is also of the class that SQLAlchemy would have raised."""

from __future__ import annotations

from contextlib import suppress
from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from ._base import SessionKitError

if TYPE_CHECKING:
    from collections.abc import Sequence

E = TypeVar("E", bound=BaseException)


class BulkError(SessionKitError):
    """A row of a bulk call could not be written; nothing of the call was, and what came before it is kept.

    Where the database or SQLAlchemy refused the row, the error is also of the class that SQLAlchemy would have raised
    (``except IntegrityError`` catches it), with its ``orig``, ``statement`` and ``params``, and ``__cause__`` is the
    driver's error.

    Attributes:
        position: which row of the input, counted from 0; None where it is about the input as a whole.
        row: the row as it was given.
        column: the attribute that is to blame, where it can be known; else None.
        rejected: where ``max_rejected`` ended the call, the `Rejected` rows so far, the last one of which is this one; else
            empty.
    """

    _refines: ClassVar[type[BaseException] | None] = None
    rejected: Sequence[Any] = ()

    def __init__(self, message: str, *, position: int | None, row: object, column: str | None = None) -> None:
        self.args = (message,)  # whatever other class this is of, its own constructor is not asked
        self.message = message
        self.position = position
        self.row = row
        self.column = column

    def _said(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        if "_refines" not in type(self).__dict__:
            return super().__reduce__()
        # A class that was made while the program ran is found again by what it was made from.
        return _bulk_error_like, (self._refines, self.args), self.__dict__

    @classmethod
    def of(
        cls, error: BaseException, message: str, *, position: int | None, row: object, column: str | None = None
    ) -> BulkError:
        """Return a BulkError that is also of the class of `error`, and has what that one has."""
        bulk_error = _bulk_error_like(type(error), (message,))
        bulk_error.__dict__.update(error.__dict__)
        BulkError.__init__(bulk_error, message, position=position, row=row, column=column)
        return bulk_error


def _bulk_error_like(other: type[BaseException] | None, args: tuple[Any, ...]) -> BulkError:
    if other is not None and other not in (SessionKitError, BulkError):
        try:
            kind = _bulk_classes.get(other) or _bulk_class_of(other)
            made = kind.__new__(kind, *args)
        except TypeError:
            pass  # an exception whose memory layout or constructor allows no second base: UnicodeEncodeError
        else:
            _bulk_classes[other] = kind
            return made
    return BulkError.__new__(BulkError, *args)


_bulk_classes: dict[type[BaseException], type[BulkError]] = {}


def _bulk_class_of(other: type[BaseException]) -> type[BulkError]:
    about = {"__module__": BulkError.__module__, "_section": BulkError._section, "_refines": other}
    return type(f"Bulk{other.__name__}", (BulkError, other), about)


def without_frames(error: E) -> E:
    """Take from an error, and from what it wraps, all that holds on to the call in which it was raised.

    Tracebacks, causes and contexts hold its frames, and these hold the page; psycopg's errors hold the server's answer.
    """
    each: BaseException | None = error
    for _ in range(3):  # SQLAlchemy's, the adapter's, the driver's
        if each is None:
            break
        _keep_names(each, each.__cause__)
        each.__traceback__ = each.__cause__ = each.__context__ = None
        inner: BaseException | None = getattr(each, "orig", None)
        if getattr(inner, "pgresult", None) is not None:
            inner = copy(inner)  # which keeps what the answer says, and not the answer
            each.__dict__["orig"] = inner
        each = inner
    return error


def _keep_names(adapter: BaseException, cause: BaseException | None) -> None:
    """Keep what only asyncpg's own error says, which SQLAlchemy's adapter has as its cause: `errors.violation` reads it."""
    for name in ("schema_name", "table_name", "column_name", "constraint_name"):
        value = getattr(cause, name, None)
        if isinstance(value, str):
            with suppress(AttributeError):
                setattr(adapter, name, value)
