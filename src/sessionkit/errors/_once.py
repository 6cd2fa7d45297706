"""What keeps a unit with ``once=`` from answering with a stored result, or from storing its own."""

from __future__ import annotations

from ._base import SessionKitError


class OnceMismatch(SessionKitError):
    """A key of ``once=`` came with other arguments than those it was first used with.

    Args:
        message: says which fingerprint is stored and which one came.
        key: the key.
    """

    def __init__(self, message: str, key: str) -> None:
        super().__init__(message)
        self.key = key


class OnceResult(SessionKitError, TypeError):
    """The result of a unit with ``once=`` cannot be stored so that the next caller gets the same; nothing was committed."""
