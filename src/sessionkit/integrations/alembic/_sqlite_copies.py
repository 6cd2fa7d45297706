"""What is lost when SQLite copies a table and drops the old one.

https://www.sqlite.org/lang_altertable.html, section 7, and https://www.sqlite.org/foreignkeys.html, section 5: with foreign
keys on, DROP TABLE first deletes all rows, with all consequences for other tables. The triggers go with the table. And the
copy cannot be renamed while a view or a trigger refers to the old table.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection


def what_is_lost(connection: Connection, table: str, schema: str | None) -> tuple[str, str] | None:
    """Return what a copy of a table would lose and what to do instead; None if it loses nothing."""
    quote = connection.dialect.identifier_preparer.quote_identifier
    inside = quote(schema or "main")
    everything = f"SELECT type, name, tbl_name, sql FROM {inside}.sqlite_master WHERE sql IS NOT NULL"  # noqa: S608 - quoted
    master: list[Any] = list(connection.exec_driver_sql(everything))
    if connection.exec_driver_sql("PRAGMA foreign_keys").scalar():
        for kind, name, _, _ in master:
            if kind == "table" and _refers(connection, inside, quote, name, table):
                what = (
                    f"foreign keys are enforced, and rows of {name} refer to it: they would be deleted, or prevent "
                    "the change"
                )
                instead = "switch off foreign keys before the migration begins, as run_migrations() does"
                return what, f"{instead} (inside a transaction PRAGMA foreign_keys=OFF has no effect)"
    for kind, name, of, _ in master:
        if kind == "trigger" and of.lower() == table.lower():
            return f"its trigger {name} would be lost", "drop the trigger first and create it again afterwards"
    for kind, name, of, _ in master:
        if kind == "index" and of.lower() == table.lower() and _has_expressions(connection, inside, quote, name):
            return (
                f"its index {name} is over an expression, and would be lost",
                "drop the index first and create it again afterwards",
            )
    if connection.exec_driver_sql("PRAGMA legacy_alter_table").scalar():
        return None
    word = re.compile(rf"(?<!\w){re.escape(table)}(?!\w)", re.IGNORECASE)
    for kind, name, _, sql in master:
        if kind in {"view", "trigger"} and word.search(sql):
            what = f"the {kind} {name} refers to it, so the copy could not be renamed"
            return what, f"drop the {kind} first and create it again afterwards"
    return None


def _refers(connection: Connection, inside: str, quote: Any, child: str, parent: str) -> bool:
    """Return whether a table has rows that refer to another table, or to itself."""
    keys: list[Any] = list(connection.exec_driver_sql(f"PRAGMA {inside}.foreign_key_list({quote(child)})"))
    columns = {key[3] for key in keys if key[2].lower() == parent.lower()}
    queries = [
        f"SELECT 1 FROM {inside}.{quote(child)} WHERE {quote(column)} IS NOT NULL LIMIT 1"  # noqa: S608 - quoted
        for column in sorted(columns)
    ]
    return any(connection.exec_driver_sql(query).first() for query in queries)


def _has_expressions(connection: Connection, inside: str, quote: Any, index: str) -> bool:
    """Tell whether an index is over more than columns: SQLAlchemy does not read those, so Alembic does not copy them."""
    return any(row[1] == -2 for row in connection.exec_driver_sql(f"PRAGMA {inside}.index_info({quote(index)})"))
