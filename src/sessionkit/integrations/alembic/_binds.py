"""Which databases a command is for, and in which order."""

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
        name: for ``-x bind=``; empty where there is only one.
        metadata: what autogenerate compares it with.
        source: what to talk to; a mapping holds the options of a section of alembic.ini.
        tables: those of `metadata` that are in it; None: all of them.
    """

    name: str
    metadata: MetaData | Sequence[MetaData] | None
    source: Engine | Connection | URL | Mapping[str, str] | Any
    tables: frozenset[Table] | None = None

    @property
    def url(self) -> URL:
        """Return its address."""
        if isinstance(self.source, Mapping):
            return make_url(self.source["sqlalchemy.url"])
        if isinstance(self.source, URL):
            return self.source
        return self.source.engine.url if isinstance(self.source, Connection) else self.source.url

    def connectable(self) -> Any:
        """Return an Engine, AsyncEngine or Connection; one that is made here keeps no connection open."""
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
    """Return the databases of a project, in the order in which they are migrated.

    Raises:
        OptionError: what was given does not fit together.
        MigrationError: alembic.ini does not say what it should.
    """
    binds = _binds_of(target, config.attributes.get("connection", engine), config)
    for bind in binds:
        if bind.name and not bind.name.isidentifier():
            raise OptionError(
                f"a database is called {bind.name!r}, and the migrations could have no function upgrade_{bind.name}(); give it "
                "a name of letters, digits and underscores"
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
                f"the databases are {', '.join(sorted(each))} in one place and {', '.join(sorted(names))} in another, of "
                "the metadata, engine= and `databases` in alembic.ini; each of them names all databases, or there is one"
            )
    if engine is not None and not isinstance(engine, Mapping):
        raise OptionError(
            f"engine={engine!r} was given for {', '.join(names)}; give a mapping from each name to its own"
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
    """Return those that ``-x bind=name`` asks for, which may be said several times; without it, all.

    Raises:
        MigrationError: there is none of that name.
    """
    asked = [value for key, _, value in (each.partition("=") for each in x_arguments) if key == "bind"]
    names = [bind.name for bind in binds]
    for name in asked:
        if name not in names:
            known = f"the databases are {', '.join(names)}" if names != [""] else "there is one database only"
            raise MigrationError(f"-x bind={name} was asked for; {known}")
    return [bind for bind in binds if not asked or bind.name in asked]


def is_factory(value: object) -> bool:
    """Tell whether it makes sessions."""
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
                f"no database is known: [{section}] of alembic.ini has no sqlalchemy.url, and run_migrations() was given "
                "no engine="
            )
        return options
    if is_factory(engine):
        engines = list(_bound(engine))
        if len(engines) != 1:
            raise OptionError(
                f"engine={engine!r} was given, which is bound to {len(engines)} engines; give one, or a mapping"
            )
        return engines[0]
    if isinstance(engine, str):
        return make_url(engine)
    if hasattr(engine, "sync_connection"):
        raise OptionError(
            f"engine={engine!r} was given, which belongs to a running event loop; there, hand over the connection that "
            "`await connection.run_sync(...)` gives, or an AsyncEngine"
        )
    if isinstance(engine, Engine | Connection | URL) or hasattr(engine, "sync_engine"):
        return engine
    raise OptionError(f"engine={engine!r} was given; it is an Engine, an AsyncEngine, a Connection, a URL or a factory")


# Factories


def _of_factory(factory: Any, engine: Any, config: Config) -> list[Bind]:
    binds = _options(factory).get("binds") or {}
    if not binds:
        raise OptionError(
            f"run_migrations({factory!r}) was called, whose factory has no binds= to tell which models there are; call "
            "run_migrations(Base.metadata, engine=factory)"
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
                f"run_migrations({factory!r}, engine={engine!r}) was called; the databases of a factory are known by the "
                "names that engine= gives them, a mapping from name to engine, and without it by their database names, "
                "which differ then"
            )
    owners = dict(_owners(factory, binds))
    found = []
    for each in bound:
        if id(each) not in names:
            raise OptionError(
                f"{each!r} of {factory!r} has no name in engine=, which names {', '.join(names.values())}"
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
    """Yield each table of the models, with the engine that the factory's sessions use for it."""
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
        # A table between two models is where they are.
        beside = {_engine_for(session, key.column.table, mappers) for key in table.foreign_keys}
        return beside.pop() if len(beside) == 1 else None
