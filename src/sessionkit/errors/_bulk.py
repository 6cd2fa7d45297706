"""The error for a row of a bulk call, which is also an instance of the class that SQLAlchemy would have raised."""

from __future__ import annotations

from contextlib import suppress
from copy import copy
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from ._base import SessionKitError

if TYPE_CHECKING:
    from collections.abc import Sequence

E = TypeVar("E", bound=BaseException)


class BulkError(SessionKitError):
    """A row of a bulk call could not be written. The call has written nothing; what came before it is kept.

    If the database or SQLAlchemy refused the row, the error is also an instance of the class that SQLAlchemy would have
    raised (``except IntegrityError`` catches it), with its ``orig``, ``statement`` and ``params``. ``__cause__`` is the
    driver's error.

    Attributes:
        position: the row's place in the input, counted from 0; None if the error is about the whole input.
        row: the row as you passed it.
        column: the attribute at fault, if it can be known; else None.
        rejected: if ``max_rejected`` ended the call, the `Rejected` rows so far, of which this one is the last; else
            empty.
    """

    _refines: ClassVar[type[BaseException] | None] = None
    rejected: Sequence[Any] = ()

    def __init__(self, message: str, *, position: int | None, row: object, column: str | None = None) -> None:
        self.args = (message,)  # without calling the constructor of the other class that this may be
        self.message = message
        self.position = position
        self.row = row
        self.column = column

    def _said(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        if "_refines" not in type(self).__dict__:
            return super().__reduce__()
        # A class that was made at run time is found again through the class it was made from.
        return _bulk_error_like, (self._refines, self.args), self.__dict__

    @classmethod
    def of(
        cls, error: BaseException, message: str, *, position: int | None, row: object, column: str | None = None
    ) -> BulkError:
        """Return a BulkError that is also an instance of the class of `error`, with the attributes of `error`."""
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
            pass  # an exception whose memory layout or constructor allows no second base, such as UnicodeEncodeError
        else:
            _bulk_classes[other] = kind
            return made
    return BulkError.__new__(BulkError, *args)


_bulk_classes: dict[type[BaseException], type[BulkError]] = {}


def _bulk_class_of(other: type[BaseException]) -> type[BulkError]:
    about = {"__module__": BulkError.__module__, "_section": BulkError._section, "_refines": other}
    return type(f"Bulk{other.__name__}", (BulkError, other), about)


def without_frames(error: E) -> E:
    """Drop from an error, and from the errors it wraps, everything that keeps the call that raised it alive.

    Tracebacks, causes and contexts keep the call's frames, which keep the page; psycopg's errors keep the server's answer.
    """
    each: BaseException | None = error
    for _ in range(3):  # SQLAlchemy's, the adapter's, the driver's
        if each is None:
            break
        _keep_names(each, each.__cause__)
        each.__traceback__ = each.__cause__ = each.__context__ = None
        inner: BaseException | None = getattr(each, "orig", None)
        if getattr(inner, "pgresult", None) is not None:
            inner = copy(inner)  # the copy keeps the fields of the answer, but not the answer
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
