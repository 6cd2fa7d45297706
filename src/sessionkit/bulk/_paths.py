"""Chooses the path to the database: by the verb, by the size of the page, and by the types of its columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import OptionError
from . import _copy, _executemany, _sets, _sqlalchemy

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._context import CallContext
    from ._page import Page
    from ._result import PageResult


class Path(NamedTuple):
    """A path to the database.

    Attributes:
        method: its public name.
        module: the module with its `refusal` and `prepare`.
    """

    method: str
    module: Any

    def refusal(self, call: CallContext, page: Page) -> str | None:
        """Return why this path cannot send pages of this shape; None if it can."""
        plan = call.plan
        if self is not SQLALCHEMY and (plan.table is None or (plan.below and call.work.verb == "delete")):
            return f"{plan.name} has several tables (joined inheritance), which only 'sqlalchemy' can write"
        refusal: str | None = self.module.refusal(call, page, self.method)
        return refusal

    def prepare(self, call: CallContext, page: Page, *, probe: bool = False) -> Callable[[], PageResult]:
        """Do everything that needs no database, and return a function that does the rest.

        Args:
            call: the call.
            page: the rows.
            probe: only find out whether the path can send the page.

        Raises:
            Exception: any error that shows that a value cannot be sent this way.
        """
        send: Callable[[], PageResult] = self.module.prepare(call, page, self.method, probe=probe)
        return send


SQLALCHEMY = Path("sqlalchemy", _sqlalchemy)

_PATHS = {
    path.method: path
    for path in (
        SQLALCHEMY,
        Path("executemany", _executemany),
        Path("copy", _copy),
        Path("unnest", _sets),
        Path("temp", _sets),
    )
}


def choose(call: CallContext, page: Page) -> Path:
    """Return the path for a page.

    Raises:
        OptionError: the method that was asked for does not exist here, or cannot send these columns.
    """
    asked, verb = call.options.method, call.work.verb
    if asked == "auto":
        for least, method in call.dialect.ladders.get(verb, ()):
            path = _PATHS[method]
            if len(page) >= least and path.refusal(call, page) is None:
                return path
        return SQLALCHEMY
    path = _PATHS[asked]
    reason: str | None = None
    if path is not SQLALCHEMY:
        known = call.dialect.forced.get(verb, ())
        if asked not in known:
            choices = ", ".join(map(repr, ("auto", *known, "sqlalchemy")))
            reason = f"{call.connection.dialect.name} has no such method for {verb}; use one of {choices}"
        else:
            reason = path.refusal(call, page)
    if reason is not None:
        raise OptionError(f"method={asked!r} was asked for, but {reason}")
    return path
