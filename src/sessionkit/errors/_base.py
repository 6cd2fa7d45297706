"""The base of all exceptions. Each has an address in the documentation, and can be copied and pickled."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, ClassVar

DOCUMENTATION = "https://sessionkit.readthedocs.io/"
"""Where the documentation is published. pyproject.toml and mkdocs.yml repeat it (tests/docs/test_errors_page.py)."""


class SessionKitError(Exception):
    """The base of everything that sessionkit raises on its own account.

    ``str(error)`` ends with the address of the section about it; ``error.args[0]`` is the message alone.
    """

    _section: ClassVar[str] = "SessionKitError"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # A user's subclass links to the documentation section of the class it derives from.
        if "_section" not in cls.__dict__ and cls.__module__.partition(".")[0] == __name__.partition(".")[0]:
            cls._section = cls.__name__

    def __str__(self) -> str:
        """Return the message and, on a line of its own, where to read more."""
        text, more = self._said(), _more(self)
        # Only once, even after the usual `raise type(error)(f"...: {error}")`.
        return text if text.endswith(more) else f"{text}\n{more}" if text else more

    def _said(self) -> str:
        """Return the message alone, as SQLAlchemy formats it if the class is also one of SQLAlchemy's."""
        return super().__str__()

    def __reduce__(self) -> tuple[Any, ...]:
        # Not through the constructor: some build the message from their arguments, and a user's subclass may too.
        return _restored, (type(self), self.args), self.__dict__


def _restored(kind: type[SessionKitError], args: tuple[Any, ...]) -> SessionKitError:
    return kind.__new__(kind, *args)


def address_of(error: SessionKitError) -> str:
    """Return the address of the section that says what an error means and what to do."""
    return f"{DOCUMENTATION}errors/#{error._section}"


def _more(error: SessionKitError) -> str:
    return f"(More: {address_of(error)})"


def message_of(error: BaseException) -> str:
    """Return what an exception says, without the address at the end: for a message that quotes it and adds its own."""
    text = str(error)
    return text.removesuffix(_more(error)).removesuffix("\n") if isinstance(error, SessionKitError) else text


def describe(error: BaseException) -> str:
    """Return an exception as the last line of a traceback shows it, for a message that quotes it."""
    return f"{type(error).__name__}: {message_of(error)}"


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an exception. One that cannot be changed, such as a frozen dataclass, stays without."""
    with suppress(AttributeError):
        error.add_note(note)
