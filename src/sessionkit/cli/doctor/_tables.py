"""The tables: commit markers, keys of once=, versioned models, and migrations."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import MetaData, func, inspect, select
from sqlalchemy.engine.reflection import ObjectKind, ObjectScope
from sqlalchemy.orm import configure_mappers

from sessionkit import commits
from sessionkit.errors import message_of

from ._finding import Finding, fail, ok, warn
from ._patient import Unusable
from ._words import a_few, age

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Table
    from sqlalchemy.engine import Connection
    from sqlalchemy.orm import Mapper

    from ._patient import Patient

__all__ = ["Models", "config_of", "keys", "markers", "migrations", "models", "models_of"]

OLD_MARKER = 7 * 86_400.0
"""A marker is useless after a day; a week means that the pruning job does not run."""

MANY_MARKERS = 1_000_000


def markers(connection: Connection, patient: Patient) -> Iterator[Finding]:
    """Check the table of commit markers."""
    check, table = "commits.table", commits.table()
    if not inspect(connection).has_table(table.name):
        yield ok(check, f"there is no {table.name} (only verify_commit=True and twophase=True need it)")
        return
    # Both times come from the server's clock; SQLite's is text without a zone.
    oldest, now = connection.execute(select(func.min(table.c.created_at), func.current_timestamp())).one()
    if oldest is None:
        yield ok(check, f"{table.name} exists, and is empty")
        return
    rows = connection.execute(select(func.count()).select_from(table)).scalar_one()
    old = (_moment(now) - _moment(oldest)).total_seconds()
    said = f"{table.name} holds {rows:,} markers, the oldest from {age(max(0.0, old))} ago"
    if old >= OLD_MARKER or rows >= MANY_MARKERS:
        yield warn(check, f"{said}: it is never pruned", f"sessionkit.commits.prune({patient.advice_name}), every day")
    else:
        yield ok(check, said)


OLD_KEY = 86_400.0
"""A key that is over its time for a day, in seconds: the job that prunes does not run."""


def keys(connection: Connection, patient: Patient) -> Iterator[Finding]:
    """Look at the table of the keys of once= and consumed()."""
    check, table = "commits.once_table", commits.once_table()
    if not inspect(connection).has_table(table.name):
        yield ok(check, f"{table.name} is not there (only once= and commits.consumed() need it)")
        return
    oldest, now = connection.execute(select(func.min(table.c.expires_at), func.current_timestamp())).one()
    if oldest is None:
        yield ok(check, f"{table.name} is there, and empty")
        return
    rows = connection.execute(select(func.count()).select_from(table)).scalar_one()
    over = (_moment(now) - _moment(oldest)).total_seconds()
    prune = f"sessionkit.commits.prune({patient.advice_name}), every day"
    said = f"{table.name} holds {rows:,} keys"
    if over >= OLD_KEY:
        yield warn(check, f"{said}, one of them over its time since {age(over)}: no job prunes it", prune)
    elif rows >= MANY_MARKERS:
        yield warn(check, said, f"a shorter once_ttl=, and {prune}")
    else:
        yield ok(check, said)


def _moment(value: datetime | str) -> datetime:
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


# Models


class Models:
    """The classes of a Base, or only the tables of a MetaData."""

    def __init__(self, metadata: MetaData, mappers: list[Mapper[Any]]) -> None:
        self.tables = metadata.sorted_tables
        self.mappers = sorted(mappers, key=lambda mapper: mapper.class_.__name__)


def models_of(asked: str, found: Any) -> Models:
    """Return the models of the object that the user named.

    Raises:
        Unusable: it is neither a declarative base nor a MetaData, or its classes cannot be mapped.
    """
    if isinstance(found, MetaData):
        return Models(found, [])
    registry = getattr(found, "registry", found)
    if not hasattr(registry, "mappers") or not hasattr(registry, "metadata"):
        raise Unusable(
            f"--metadata is {asked!r}, which is a {type(found).__name__}, not a declarative base, registry or "
            "MetaData; name one of these"
        )
    try:
        configure_mappers()
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise Unusable(f"--metadata is {asked!r}, whose classes cannot be mapped: {first}") from error
    return Models(found.metadata if hasattr(found, "metadata") else registry.metadata, list(registry.mappers))


def models(connection: Connection, patient: Patient, given: Models) -> Iterator[Finding]:
    """Compare classes and tables: find missing tables and columns, and classes without protection from lost updates."""
    there = inspect(connection)
    known: dict[tuple[str | None, str], Any] = {}
    for schema in {table.schema for table in given.tables}:
        names = [table.name for table in given.tables if table.schema == schema]
        known |= there.get_multi_columns(schema, names, ObjectKind.ANY, ObjectScope.ANY)
    columns: dict[Table, dict[str, Any]] = {
        table: {one["name"]: one for one in known[table.schema, table.name]}
        for table in given.tables
        if (table.schema, table.name) in known
    }
    absent = [table.fullname for table in given.tables if table not in columns]
    lost = [
        f"{table.fullname}.{column.name}"
        for table, there_are in columns.items()
        for column in table.columns
        if not column.system and column.name not in there_are
    ]
    yield from _missing(given, absent, lost)
    yield from _versions(given, columns)


def _missing(given: Models, absent: list[str], lost: list[str]) -> Iterator[Finding]:
    advice = "alembic upgrade head; or, without migrations, metadata.create_all() for new tables"
    if absent:
        yield fail("models.tables", f"not in the database: {a_few(absent)}", advice)
    if lost:
        yield fail("models.columns", f"not in the database: {a_few(lost)}", advice)
    if not absent and not lost:
        yield ok("models.tables", f"{len(given.tables)}, each with all its columns in the database")


def _versions(given: Models, columns: dict[Table, dict[str, Any]]) -> Iterator[Finding]:
    if not given.mappers:
        return
    bare = [mapper.class_.__name__ for mapper in given.mappers if mapper.version_id_col is None]
    if bare:
        yield warn(
            "models.versions",
            f"without a version, so the later of two updates silently wins: {a_few(bare)}",
            "class ...(Versioned, Base), unless its rows are never updated",
        )
    nullable: dict[str, str] = {}
    for mapper in given.mappers:
        column = mapper.version_id_col
        known: dict[str, Any] = columns.get(column.table, {}) if column is not None else {}
        if column is not None and known.get(column.name, {}).get("nullable"):
            nullable[f"{column.table.fullname}.{column.name}"] = mapper.class_.__name__
    if nullable:
        yield fail(
            "models.nullable",
            f"a version may be NULL, and no UPDATE matches NULL: {a_few(nullable)}",
            "fill it and make it NOT NULL: op.add_version_column() does both, op.alter_column(nullable=False) only "
            "the second",
        )
    if not bare and not nullable:
        yield ok("models.versions", f"{len(given.mappers)} classes, all versioned")


# Migrations


def config_of(asked: str) -> Any:
    """Return Alembic's configuration for an alembic.ini, its directory, or a directory of migrations.

    Raises:
        Unusable: there is no configuration, or Alembic is not installed.
    """
    try:
        from alembic.config import Config
    except ImportError as error:
        raise Unusable("--alembic needs Alembic: pip install 'sessionkit[alembic]'") from error
    path = Path(asked)
    ini = path / "alembic.ini" if path.is_dir() else path
    if ini.is_file():
        return Config(str(ini))
    if path.is_dir() and (path / "env.py").is_file():
        config = Config()
        config.set_main_option("script_location", str(path).replace("%", "%%"))
        return config
    raise Unusable(
        f"--alembic is {asked!r}, which is neither an alembic.ini nor a directory with alembic.ini or env.py"
    )


def migrations(connection: Connection, patient: Patient, config: Any) -> Iterator[Finding]:
    """Compare the database's revision with the newest migration."""
    from alembic.script import ScriptDirectory
    from alembic.util.exc import CommandError

    from sessionkit.integrations.alembic import NotUpToDate, assert_up_to_date

    check, heads = "migrations.head", list[str]()
    try:
        heads = list(ScriptDirectory.from_config(config).get_heads())
        assert_up_to_date(connection, config)
    except NotUpToDate as error:
        found, _, advice = message_of(error).rpartition("; ")
        yield fail(check, found, advice)
    except CommandError as error:
        yield fail(check, f"the migrations cannot be read: {message_of(error)}", "`alembic heads` shows the same error")
    else:
        yield ok(check, f"the database is at {', '.join(heads) or 'no revision, and there is no migration'}")
    if len(heads) > 1:
        yield warn(
            "migrations.heads",
            f"{len(heads)} heads: {a_few(heads)}",
            "alembic merge heads, unless the branches are intended",
        )
