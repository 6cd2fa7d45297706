"""The error of a row in a bulk call, which is also of the class that SQLAlchemy would have raised."""

from __future__ import annotations

from typing import Any, ClassVar

from ._base import SessionKitError


class BulkError(SessionKitError):
    """A row of a bulk call could not be written; nothing of the call was, and what came before it is kept.

    Where the database or SQLAlchemy refused the row, the error is also of the class that SQLAlchemy would have raised
    (``except IntegrityError`` catches it), with its ``orig``, ``statement`` and ``params``, and ``__cause__`` is the
    driver's error.

    Attributes:
        position: which row of the input, counted from 0.
        row: the row as it was given.
        column: the attribute that is to blame, where it can be known; else None.
    """

    _refines: ClassVar[type[BaseException] | None] = None

    def __init__(self, message: str, *, position: int, row: object, column: str | None = None) -> None:
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
        cls, error: BaseException, message: str, *, position: int, row: object, column: str | None = None
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
