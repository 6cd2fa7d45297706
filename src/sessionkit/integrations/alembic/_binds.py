"""Which databases a command applies to, and in which order."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from sqlalchemy import MetaData, NullPool, Table, create_engine, engine_from_config, make_url, orm
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import UnboundExecutionError

from ...errors import OptionError
from ._errors import MigrationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from alembic.config import Config


@dataclass(frozen=True, slots=True)
class Bind:
    """One database of a project.

    Attributes:
        name: the name for ``-x bind=``; empty if there is only one database.
        metadata: the metadata that autogenerate compares with the database.
        source: how to connect; a mapping holds the options of a section of alembic.ini.
        tables: the tables of `metadata` in this database; None for all of them.
    """

    name: str
    metadata: MetaData | Sequence[MetaData] | None
    source: Engine | Connection | URL | Mapping[str, str] | Any
    tables: frozenset[Table] | None = None

    @property
    def url(self) -> URL:
        """Return the database URL."""
        if isinstance(self.source, Mapping):
            return make_url(self.source["sqlalchemy.url"])
        if isinstance(self.source, URL):
            return self.source
        return self.source.engine.url if isinstance(self.source, Connection) else self.source.url

    def connectable(self) -> Any:
        """Return an Engine, AsyncEngine or Connection. An engine made here keeps no connection open."""
        if not isinstance(self.source, Mapping | URL):
            return self.source
        if not self.url.get_dialect().is_async:
            if isinstance(self.source, URL):
                return create_engine(self.source, poolclass=NullPool)
            return engine_from_config(dict(self.source), poolclass=NullPool)
        from sqlalchemy.ext.asyncio import async_engine_from_config, create_async_engine

        if isinstance(self.source, URL):
            return create_async_engine(self.source, poolclass=NullPool)
        return async_engine_from_config(dict(self.source), poolclass=NullPool)


def binds_of(target: Any, engine: Any, config: Config) -> list[Bind]:
    """Return the databases of a project in migration order.

    Raises:
        OptionError: the arguments contradict each other.
        MigrationError: an entry is missing in alembic.ini.
    """
    binds = _binds_of(target, config.attributes.get("connection", engine), config)
    for bind in binds:
        if bind.name and not bind.name.isidentifier():
            raise OptionError(
                f"a database is called {bind.name!r}, but upgrade_{bind.name}() is not a valid name of a function; "
                "use only letters, digits and underscores"
            )
    return binds


def _binds_of(target: Any, engine: Any, config: Config) -> list[Bind]:
    named = [name.strip() for name in (config.get_main_option("databases") or "").split(",") if name.strip()]
    if is_factory(target):
        return _of_factory(target, engine, config)
    several = [set(each) for each in (target, engine) if isinstance(each, Mapping)]
    if not several and not named:
        return [Bind("", _metadata(target), _source(engine, config, None))]
    names = list(engine if isinstance(engine, Mapping) else target if isinstance(target, Mapping) else named)
    for each in [*several, *([set(named)] if named else [])]:
        if each != set(names):
            raise OptionError(
                "the metadata, engine= and `databases` in alembic.ini must name the same databases, but one names "
                f"{', '.join(sorted(each))} and another {', '.join(sorted(names))}; name all databases in each"
            )
    if engine is not None and not isinstance(engine, Mapping):
        raise OptionError(
            f"engine={engine!r} was given for {', '.join(names)}; give a mapping from each name to its engine"
        )
    return [
        Bind(
            name,
            _metadata(target[name] if isinstance(target, Mapping) else target),
            _source(None if engine is None else engine[name], config, name),
        )
        for name in names
    ]


def chosen(binds: list[Bind], x_arguments: Iterable[str]) -> list[Bind]:
    """Return the databases that ``-x bind=name`` selects (it may be repeated); all without it.

    Raises:
        MigrationError: no database has that name.
    """
    asked = [value for key, _, value in (each.partition("=") for each in x_arguments) if key == "bind"]
    names = [bind.name for bind in binds]
    for name in asked:
        if name not in names:
            known = f"the databases are {', '.join(names)}" if names != [""] else "there is only one database"
            raise MigrationError(f"-x bind={name} was asked for; {known}")
    return [bind for bind in binds if not asked or bind.name in asked]


def is_factory(value: object) -> bool:
    """Return whether a value is a session factory."""
    part = sys.modules.get("sqlalchemy.ext.asyncio")
    kinds: tuple[Any, ...] = (orm.sessionmaker, orm.scoped_session)
    if part is not None:
        kinds = (*kinds, part.async_sessionmaker, part.async_scoped_session)
    return isinstance(value, kinds)


def _metadata(target: Any) -> Any:
    several = isinstance(target, Sequence) and all(isinstance(each, MetaData) for each in target)
    if target is None or isinstance(target, MetaData) or several:
        return target
    own = getattr(target, "metadata", None)
    hint = f"; pass {target.__name__}.metadata" if isinstance(own, MetaData) and isinstance(target, type) else ""
    raise OptionError(f"run_migrations() takes a MetaData, a list of them, or a factory, not {target!r}{hint}")


def _source(engine: Any, config: Config, name: str | None) -> Any:
    if engine is None:
        section = name or config.config_ini_section
        options = config.get_section(section, {})
        if not options.get("sqlalchemy.url"):
            raise MigrationError(
                f"there is no database to migrate: section [{section}] of alembic.ini has no sqlalchemy.url, and "
                "run_migrations() got no engine=; add one of them"
            )
        return options
    if is_factory(engine):
        engines = list(_bound(engine))
        if len(engines) != 1:
            raise OptionError(
                f"engine={engine!r} was given, which is bound to {len(engines)} engines; give one of them, or a mapping"
            )
        return engines[0]
    if isinstance(engine, str):
        return make_url(engine)
    if hasattr(engine, "sync_connection"):
        raise OptionError(
            f"engine={engine!r} was given, which belongs to a running event loop; pass the connection that `await "
            "connection.run_sync(...)` provides, or an AsyncEngine"
        )
    if isinstance(engine, Engine | Connection | URL) or hasattr(engine, "sync_engine"):
        return engine
    raise OptionError(f"engine={engine!r} was given; give an Engine, an AsyncEngine, a Connection, a URL or a factory")


# Factories


def _of_factory(factory: Any, engine: Any, config: Config) -> list[Bind]:
    binds = _options(factory).get("binds") or {}
    if not binds:
        raise OptionError(
            f"run_migrations({factory!r}) was called, but the factory has no binds= and so does not name its models; "
            "call run_migrations(Base.metadata, engine=factory)"
        )
    bound = _bound(factory)
    if len(bound) == 1 and not isinstance(engine, Mapping):
        metadata = list(dict.fromkeys(table.metadata for table, _ in _owners(factory, binds)))
        return [Bind("", metadata, bound[0] if engine is None else _source(engine, config, None))]
    if isinstance(engine, Mapping):
        names = {id(each): name for name, each in engine.items()}
    else:
        names = {id(each): PurePath(each.url.database or "").stem for each in bound}
        if engine is not None or len(set(names.values())) != len(names):
            raise OptionError(
                f"run_migrations({factory!r}, engine={engine!r}) was called, but a factory's databases need names; "
                "give engine= a mapping from names to engines, or leave it out if all database names differ"
            )
    owners = dict(_owners(factory, binds))
    found = []
    for each in bound:
        if id(each) not in names:
            raise OptionError(
                f"{each!r} of {factory!r} has no name in engine=, which names {', '.join(names.values())}; add it there"
            )
        tables = frozenset(table for table, owner in owners.items() if owner is _sync(each))
        metadata = list({id(table.metadata): table.metadata for table in tables}.values())
        found.append(Bind(names[id(each)], metadata, each, tables))
    order = list(names.values())
    return sorted(found, key=lambda bind: order.index(bind.name))


def _options(factory: Any) -> dict[str, Any]:
    options: dict[str, Any] = getattr(factory, "session_factory", factory).kw
    return options


def _bound(factory: Any) -> list[Any]:
    options = _options(factory)
    engines = [options.get("bind"), *(options.get("binds") or {}).values()]
    return list({id(engine): engine for engine in engines if engine is not None}.values())


def _sync(engine: Any) -> Any:
    return getattr(engine, "sync_engine", engine)


def _owners(factory: Any, binds: Mapping[Any, Any]) -> Iterable[tuple[Table, Engine]]:
    """Yield each table of the models with the engine that the factory's sessions use for it."""
    handed = factory()
    session: orm.Session = getattr(handed, "sync_session", handed)
    registries = {key.registry for key in binds if hasattr(key, "registry")}
    mappers = {mapper.local_table: mapper for registry in registries for mapper in registry.mappers}
    metadatas: list[MetaData] = [key.metadata for key in binds if hasattr(key, "metadata")]
    for metadata in dict.fromkeys(metadatas):
        for table in metadata.sorted_tables:
            engine = _engine_for(session, table, mappers)
            if engine is None:
                raise OptionError(
                    f"the table {table} belongs to no engine of {factory!r}; name it, or its model, in binds=, or give the "
                    "factory a bind= for the rest"
                )
            yield table, engine


def _engine_for(session: orm.Session, table: Table, mappers: Mapping[Any, Any]) -> Any:
    try:
        if table in mappers:
            return session.get_bind(mappers[table])
        return session.get_bind(clause=table)
    except UnboundExecutionError:
        if table in mappers:
            return None
        # An association table is in the database of its models.
        beside = {_engine_for(session, key.column.table, mappers) for key in table.foreign_keys}
        return beside.pop() if len(beside) == 1 else None
