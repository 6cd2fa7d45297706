"""The scope's name in its statements, as a comment that monitoring of the database can read.

::

    from sessionkit.integrations.sqlcommenter import comment_statements

    comment_statements(engine)

``SELECT ... /*scope='transfer'*/``: the format is that of https://google.github.io/sqlcommenter/spec/.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote
from weakref import WeakKeyDictionary

from sqlalchemy import event

from .._spi import root_of
from ..errors import OptionError
from ._observed import group_of
from ._senders import follow_sessions, name_of_sender, root_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy.engine import Connection, Engine, ExecutionContext

__all__ = ["comment_statements"]

logger = logging.getLogger("sessionkit")

E = TypeVar("E")

_commented: WeakKeyDictionary[Engine, Callable[[dict[str, str]], object] | None] = WeakKeyDictionary()
"""For each engine: what adds to the scope's name, if anything does."""


def comment_statements(engine: E, *, traceparent: bool = False) -> E:
    """Have what a named scope sends end with a comment that holds its name, and return the engine.

    A statement that has a comment already is left as it is, as the format asks; so is what the scope's options have the
    driver or the database do when the transaction begins, and what is sent outside of named scopes.

    The comment becomes a part of the statement's text. A driver that keeps prepared statements keeps one for each scope
    that sends it. The scope of a web request is called by its method in it, since there are many paths.

    Args:
        engine: an ``Engine`` or ``AsyncEngine``; what was derived from it is meant as well.
        traceparent: add the identifiers of the trace and of the current span, as W3C Trace Context writes them. Every
            statement then has a text of its own, so that none is prepared for another time. Needs the extra
            ``opentelemetry``.

    Raises:
        OptionError: `engine` is none, or OpenTelemetry is not installed.

    Emits no SQL of its own.
    """
    root = root_engine(engine, "comment_statements()")
    add = _propagator() if traceparent else None
    if root not in _commented:
        follow_sessions()
        event.listen(root, "before_cursor_execute", _comment, retval=True)
    _commented[root] = add
    return engine


def _propagator() -> Callable[[dict[str, str]], object]:
    try:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    except ImportError:
        raise OptionError(
            "traceparent=True was given to comment_statements(), but OpenTelemetry is not installed; "
            "install sessionkit[opentelemetry]"
        ) from None
    return TraceContextTextMapPropagator().inject


def _comment(
    connection: Connection,
    cursor: Any,
    statement: str,
    parameters: Any,
    context: ExecutionContext | None,
    executemany: bool,
) -> tuple[str, Any]:
    # Of a web request only the method: a text for each path would leave no statement to be prepared for another time.
    name = group_of(name_of_sender(connection))
    if name is None:
        return statement, parameters
    pairs = {"scope": name}
    add = _commented.get(root_of(connection.engine))
    if add is not None:
        try:
            add(pairs)
        except Exception:
            logger.exception("a statement was sent without its trace")
    comment = written(pairs)
    # The drivers with these styles read every % as the beginning of a placeholder, in comments too, unless SQLAlchemy
    # was asked to call them without parameters.
    bare = not parameters and context is not None and bool(context.execution_options.get("no_parameters"))
    if connection.dialect.paramstyle in ("format", "pyformat") and not bare:
        comment = comment.replace("%", "%%")
    return with_comment(statement, comment), parameters


def written(pairs: Mapping[str, str]) -> str:
    """Return a comment that holds keys and values. Nothing in them can end it: what is no letter or digit is encoded."""
    inside = ",".join(sorted(f"{_encoded(key)}='{_encoded(value)}'" for key, value in pairs.items()))
    return f"/*{inside}*/"


def _encoded(text: str) -> str:
    return quote(text, safe="", errors="replace")


def with_comment(statement: str, comment: str) -> str:
    """Return a statement with a comment at its end, before the semicolon; as it is, if it seems to have one already."""
    if "--" in statement or "/*" in statement:
        return statement
    text = statement.rstrip()
    if text.endswith(";"):
        return f"{text[:-1].rstrip()} {comment};"
    return f"{text} {comment}"
