"""The base of all exceptions: what they have in common is an address, and that they can be copied and pickled."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, ClassVar

DOCUMENTATION = "https://sessionkit.readthedocs.io/"
"""Where the documentation is published. pyproject.toml and mkdocs.yml say it too (tests/docs/test_errors_page.py)."""


class SessionKitError(Exception):
    """The base of everything that sessionkit raises by itself.

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
        # Once only, also in the usual `raise type(error)(f"...: {error}")`.
        return text if text.endswith(more) else f"{text}\n{more}" if text else more

    def _said(self) -> str:
        """Return the message alone; of a class that is SQLAlchemy's too, as SQLAlchemy has it."""
        return super().__str__()

    def __reduce__(self) -> tuple[Any, ...]:
        # Not by the constructor: some have arguments from which the message is made, as those of users may.
        return _restored, (type(self), self.args), self.__dict__


def _restored(kind: type[SessionKitError], args: tuple[Any, ...]) -> SessionKitError:
    return kind.__new__(kind, *args)


def address_of(error: SessionKitError) -> str:
    """Return the address of the section that tells what an error means and what to do."""
    return f"{DOCUMENTATION}errors/#{error._section}"


def _more(error: SessionKitError) -> str:
    return f"(More: {address_of(error)})"


def message_of(error: BaseException) -> str:
    """Return what an exception says, without the address of ours: for a message that quotes it and has its own."""
    text = str(error)
    return text.removesuffix(_more(error)).removesuffix("\n") if isinstance(error, SessionKitError) else text


def describe(error: BaseException) -> str:
    """Return an exception as a traceback's last line has it, for a message that quotes it."""
    return f"{type(error).__name__}: {message_of(error)}"


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an exception; one that cannot be changed, such as a frozen dataclass, goes without."""
    with suppress(AttributeError):
        error.add_note(note)
