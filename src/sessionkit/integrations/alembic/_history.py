"""Finds version columns in the migrations themselves.

A column in the database does not show that it was a version: an ``updated_at`` may have any purpose. The migration that
created it shows it.
"""

from __future__ import annotations

import ast
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from alembic.script import ScriptDirectory

Known = dict[tuple[Any, Any, Any], Any]
"""Maps schema, table and column to the name of the kind."""


_MAKE_VERSIONS = {"add_version_column": "count", "adopt_version_column": "timestamp"}
"""The operations that make a column a version, with their default kind."""


def version_columns(script: ScriptDirectory | None) -> Known:
    """Return the version columns that any migration has added or created."""
    known: Known = {}
    if script is not None:
        for revision in reversed(list(script.walk_revisions())):
            path = Path(revision.path)
            if path.suffix == ".py" and path.exists():
                known.update(_said_in(path, path.stat().st_mtime_ns))
    return known


@lru_cache(maxsize=1024)
def _said_in(path: Path, changed: int) -> Known:
    known: Known = {}
    for call, table in _calls(ast.parse(path.read_text(encoding="utf-8")), None):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        options = {word.arg: _value(word.value) for word in call.keywords if word.arg}
        values = [_value(each) for each in call.args]
        if name == "create_table" and values:
            marked = (options.get("info") or {}).get("sessionkit_version", {})
            known.update({(options.get("schema"), values[0], column): kind for column, kind in marked.items()})
        elif name in _MAKE_VERSIONS:
            schema, of = table if table is not None else (options.get("schema"), options.get("table_name"))
            if table is None and values:
                of = values.pop(0)
            kind = options.get("kind", _MAKE_VERSIONS[name])
            column = values[0] if values else options.get("column_name")
            column = column or ("updated_at" if kind == "timestamp" else "version_id")
            known[schema, of, column] = kind
    return known


def _calls(node: ast.AST, table: tuple[Any, Any] | None) -> Iterator[tuple[ast.Call, tuple[Any, Any] | None]]:
    """Yield every call of a migration, with the table of the batch_alter_table() around it."""
    if isinstance(node, ast.With):
        for item in node.items:
            call = item.context_expr
            if isinstance(call, ast.Call) and getattr(call.func, "attr", None) == "batch_alter_table":
                options: Mapping[str | None, Any] = {word.arg: _value(word.value) for word in call.keywords}
                name = _value(call.args[0]) if call.args else options.get("table_name")
                schema = _value(call.args[1]) if len(call.args) > 1 else options.get("schema")
                table = (schema, name)
    if isinstance(node, ast.Call):
        yield node, table
    for child in ast.iter_child_nodes(node):
        yield from _calls(child, table)


def _value(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None
