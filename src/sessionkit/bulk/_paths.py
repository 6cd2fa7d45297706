"""Which way to the database: by what the verb can, by the size of the page, by the shape of its columns."""

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
    """A way to the database.

    Attributes:
        method: its public name.
        module: where its `refusal` and `prepare` are.
    """

    method: str
    module: Any

    def refusal(self, call: CallContext, page: Page) -> str | None:
        """Tell why this way cannot take pages of this shape; None if it can."""
        plan = call.plan
        if self is not SQLALCHEMY and (plan.table is None or (plan.below and call.work.verb == "delete")):
            return (
                f"the rows of {plan.name} have several tables (joined inheritance), which only 'sqlalchemy' can write"
            )
        refusal: str | None = self.module.refusal(call, page, self.method)
        return refusal

    def prepare(self, call: CallContext, page: Page, *, probe: bool = False) -> Callable[[], PageResult]:
        """Do all that needs no database, and return what does the rest.

        Args:
            call: the call.
            page: the rows.
            probe: only find out whether it can be done.

        Raises:
            Exception: whatever tells that a value cannot be expressed this way.
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
    """Return the way for a page.

    Raises:
        OptionError: the method that was asked for does not exist here, or cannot express these columns.
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
            there_are = ", ".join(map(repr, ("auto", *known, "sqlalchemy")))
            reason = f"{call.connection.dialect.name} has no such way for {verb}; there are {there_are}"
        else:
            reason = path.refusal(call, page)
    if reason is not None:
        raise OptionError(f"method={asked!r} was asked for, but {reason}")
    return path
