"""Adds the scope's name to its statements, as a comment that database monitoring can read.

::

    from sessionkit.integrations.sqlcommenter import comment_statements

    comment_statements(engine)

``SELECT ... /*scope='transfer'*/``: the format of https://google.github.io/sqlcommenter/spec/.
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
"""For each engine, the function that adds further keys, if any."""


def comment_statements(engine: E, *, traceparent: bool = False) -> E:
    """Append a comment with the scope's name to the statements of named scopes, and return the engine.

    A statement that already has a comment is left alone, as the format demands. So are statements outside named scopes, and
    those that a scope's options send when the transaction begins.

    The comment is part of the statement's text, so a driver that caches prepared statements caches one per scope that sends
    it. For a web request the comment holds only the method, since there are many paths.

    Args:
        engine: an ``Engine`` or ``AsyncEngine``; engines derived from it are included.
        traceparent: add the identifiers of the trace and of the current span, in the form of W3C Trace Context. Every
            statement then has a different text, so prepared statements are never reused. Needs the extra ``opentelemetry``.

    Raises:
        OptionError: `engine` is not an engine, or OpenTelemetry is not installed.

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
    # For a web request only the method: with the path in the text, prepared statements would never be reused.
    name = group_of(name_of_sender(connection))
    if name is None:
        return statement, parameters
    pairs = {"scope": name}
    add = _commented.get(root_of(connection.engine))
    if add is not None:
        try:
            add(pairs)
        except Exception:
            logger.exception("could not add the trace to a statement, which was sent without it")
    comment = written(pairs)
    # Drivers with these styles read every % as the start of a placeholder, even in comments, unless SQLAlchemy was asked to
    # call them without parameters.
    bare = not parameters and context is not None and bool(context.execution_options.get("no_parameters"))
    if connection.dialect.paramstyle in ("format", "pyformat") and not bare:
        comment = comment.replace("%", "%%")
    return with_comment(statement, comment), parameters


def written(pairs: Mapping[str, str]) -> str:
    """Return a comment with keys and values. Nothing in them can end it: all but letters and digits is encoded."""
    inside = ",".join(sorted(f"{_encoded(key)}='{_encoded(value)}'" for key, value in pairs.items()))
    return f"/*{inside}*/"


def _encoded(text: str) -> str:
    return quote(text, safe="", errors="replace")


def with_comment(statement: str, comment: str) -> str:
    """Return a statement with a comment at its end, before the semicolon; unchanged if it seems to have one already."""
    if "--" in statement or "/*" in statement:
        return statement
    text = statement.rstrip()
    if text.endswith(";"):
        return f"{text[:-1].rstrip()} {comment};"
    return f"{text} {comment}"
