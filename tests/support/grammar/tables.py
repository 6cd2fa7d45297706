"""A table as a frozen description, and the mapped class and the DDL that are made of it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Computed,
    Enum,
    FetchedValue,
    ForeignKey,
    Identity,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    literal,
    literal_column,
    select,
    text,
)
from sqlalchemy import column as column_
from sqlalchemy.orm import composite, registry, synonym

from sessionkit import Versioned
from tests.support.grammar.words import WORDS, Colour, Lower, Word

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Connection

GIVEN = 100_000
"""Keys that the rows hold begin here; what the server makes stays below, or has a sign."""


class Told:
    """A description that is printed as the expression that makes it, without what is as always."""

    def __repr__(self) -> str:
        described: Any = self
        told = [(f.name, getattr(self, f.name)) for f in fields(described) if getattr(self, f.name) != f.default]
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in told)})"


@dataclass(frozen=True, repr=False)
class Col(Told):
    """A column: the attribute is ``attr0``, ``attr1``... by its place.

    Attributes:
        default: "scalar", "callable", "parameters", "isinsert", "connection" (they look at the context), "sql", "server".
        onupdate: "scalar", "callable", "parameters", "sql".
        checked: a constraint holds its numbers above -1000, or its text below some length.
        child: it belongs to the subclass.
    """

    word: str
    name: str
    nullable: bool = True
    default: str = ""
    onupdate: str = ""
    checked: bool = False
    child: bool = False


@dataclass(frozen=True, repr=False)
class Shape(Told):
    """A mapped class. Each has a unique number, ``label``.

    Attributes:
        key: see `KEYS`.
        version: "count" and "twos" are SQLAlchemy's version_id_col, "kit" is `sessionkit.Versioned`.
        inherits: "single" or "joined": what is mapped is a subclass.
        uniques: "code", "partial", "lower", "pair": further unique keys, on ``code``.
        trigger: "change" has ``note`` in capitals and ``touched`` counted; "skip insert", "skip update" and "skip delete"
            take out the rows of which the label leaves 1 when divided by 3.
        extras: "point" (a composite), "synonym", "computed", "unmapped".
    """

    columns: tuple[Col, ...] = ()
    name: str = "grammar"
    key: str = "auto"
    version: str = ""
    inherits: str = ""
    uniques: tuple[str, ...] = ()
    trigger: str = ""
    extras: tuple[str, ...] = ()


@dataclass
class Point:
    x: int | None
    y: int | None


@dataclass(frozen=True)
class Key:
    """A kind of primary key.

    Attributes:
        columns: makes them, by attribute.
        given: the values that a row holds, by its label.
        made: the attribute that the server, or a default, makes where the row does not hold it.
    """

    columns: Callable[[], dict[str, Column[Any]]]
    given: Callable[[int], dict[str, Any]]
    made: str | None = None
    backends: tuple[str, ...] = ("sqlite", "postgresql")


def _one(*args: Any, **options: Any) -> Callable[[], dict[str, Column[Any]]]:
    return lambda: {
        "key": Column("key", *(a() if isinstance(a, type) else a for a in args), primary_key=True, **options)
    }


def _number(label: int) -> dict[str, Any]:
    return {"key": GIVEN + label}


def _by_label(context: Any) -> UUID:
    return UUID(int=5000 - context.get_current_parameters()["label"])


_POSTGRESQL = ("postgresql",)
KEYS: dict[str, Key] = {
    "auto": Key(_one(Integer), _number, "key"),
    "variant": Key(_one(BigInteger().with_variant(Integer(), "sqlite")), _number, "key"),
    "bigint": Key(_one(BigInteger, autoincrement=False), lambda label: {"key": 2**40 - label}),
    "identity": Key(lambda: {"key": Column("Key", Integer, Identity(start=5), primary_key=True)}, _number, "key"),
    "descending": Key(
        lambda: {"key": Column("key", Integer, Identity(start=-1, increment=-1), primary_key=True)},
        _number,
        "key",
        _POSTGRESQL,
    ),
    "served uuid": Key(
        _one(Uuid, server_default=func.gen_random_uuid()),
        lambda label: {"key": UUID(int=label + 1)},
        "key",
        _POSTGRESQL,
    ),
    "trigger": Key(_one(Integer, autoincrement=False, server_default=FetchedValue()), _number, "key", _POSTGRESQL),
    "text": Key(
        lambda: {"key": Column("the key", String(40), primary_key=True)}, lambda label: {"key": f"K'{label}%ß"}
    ),
    "lower": Key(_one(Lower), lambda label: {"key": f"Key {label}"}),
    "uuid": Key(_one(Uuid), lambda label: {"key": UUID(int=1000_000 - label)}),
    "defaulted uuid": Key(_one(Uuid, default=_by_label), lambda label: {"key": UUID(int=label + 10_000)}, "default"),
    "enum": Key(
        lambda: {
            "key": Column("key", Enum(Colour, name="key_colour"), primary_key=True),
            "key2": Column("key 2", Integer, primary_key=True, autoincrement=False),
        },
        lambda label: {"key": list(Colour)[label % 3], "key2": label},
    ),
    "composite": Key(
        lambda: {
            "key": Column("key", Integer, primary_key=True, autoincrement=False),
            "key2": Column("key 2", String(9), primary_key=True),
        },
        lambda label: {"key": label // 2, "key2": f"z{label}"},
    ),
    "half made": Key(
        lambda: {
            "key": Column("key", Integer, primary_key=True, autoincrement=False),
            "key2": Column("key 2", Integer, Identity(start=9), primary_key=True),
        },
        lambda label: {"key": label % 2, "key2": GIVEN + label},
        "key2",
        _POSTGRESQL,
    ),
}


@dataclass
class Built:
    """A mapped class, its tables and what else the database holds for it."""

    shape: Shape
    entity: Any
    tables: list[Table]
    attributes: list[str]
    mapper_registry: registry

    @property
    def key(self) -> Key:
        return KEYS[self.shape.key]

    @property
    def keys(self) -> list[str]:
        return [name for name in self.attributes if name in {"key", "key2"}]

    @property
    def version(self) -> str | None:
        mapper = self.entity.__mapper__
        column = mapper.version_id_col
        return None if column is None else str(mapper.get_property_by_column(column).key)

    def create(self, connection: Connection) -> None:
        self.mapper_registry.metadata.create_all(connection, checkfirst=False)
        for statement in _triggers(self.shape, self.tables[0], connection):
            # The driver's own string: a % in a name is a name.
            cursor = connection.connection.cursor()
            cursor.execute(statement)
            cursor.close()

    def drop(self, connection: Connection) -> None:
        self.mapper_registry.metadata.drop_all(connection, checkfirst=False)
        if connection.dialect.name == "postgresql" and (self.shape.trigger or self.shape.key == "trigger"):
            connection.execute(text("DROP FUNCTION grammar_trigger()"))
        if self.shape.key == "trigger":
            connection.execute(text("DROP SEQUENCE grammar_keys"))


def _context_default(col: Col, word: Word) -> dict[str, Any]:
    def value(context: Any) -> Any:
        if col.word == "integer":
            return context.get_current_parameters().get("label", -1)
        return word.default if context.get_current_parameters() is not None else None

    return {"default": value}


def _default(col: Col) -> dict[str, Any]:
    word = WORDS[col.word]
    made: dict[str, Any] = {
        "": {},
        "scalar": {"default": word.default},
        "callable": {"default": lambda: word.default},
        "parameters": _context_default(col, word),
        "isinsert": {"default": lambda context: word.default if context.isinsert else None},
        "connection": {"default": lambda context: context.connection.scalar(select(literal(3)))},
        "sql": {"default": literal_column(word.server or "NULL")},
        "server": {"server_default": text((word.server or "NULL").replace(":", r"\:"))},
    }[col.default]
    return made


def _onupdate(col: Col) -> dict[str, Any]:
    word = WORDS[col.word]
    made: dict[str, Any] = {
        "": {},
        "scalar": {"onupdate": word.default},
        "callable": {"onupdate": lambda: word.default},
        "parameters": {"onupdate": _context_default(col, word)["default"]},
        "sql": {"onupdate": literal_column(word.server or "NULL")},
    }[col.onupdate]
    return made


def _check(col: Col) -> Any:
    bound: Any = column_(col.name, WORDS[col.word].type())
    # Not a text: a name may need quotes.
    return func.length(bound) < 15 if "text" in col.word or col.word == "variant" else bound > literal_column("-1000")


def build(shape: Shape) -> Built:
    """Make the class in a registry of its own."""
    mapper_registry = registry()
    base: Any = mapper_registry.generate_base()
    body: dict[str, Any] = dict(KEYS[shape.key].columns())
    body["label"] = Column("label", Integer, nullable=False, unique=True)
    if shape.uniques:
        body["code"] = Column("Code", Text, nullable=True)
    if shape.trigger == "change":
        body["note"] = Column("note", Text, default="by default")
        body["touched"] = Column("touched", Integer, server_default=FetchedValue(), server_onupdate=FetchedValue())
    below: dict[str, Any] = {}
    constraints: list[Any] = []
    for place, col in enumerate(shape.columns):
        column: Any = Column(col.name, WORDS[col.word].type(), nullable=col.nullable, **_default(col), **_onupdate(col))
        (below if col.child else body)[f"attr{place}"] = column
        if col.checked and not col.child:
            constraints.append(CheckConstraint(_check(col)))
    if "point" in shape.extras:
        x, y = Column("point x", Integer), Column("point y", Integer, onupdate=None)
        body |= {"x": x, "y": y, "point": composite(Point, x, y)}
    if "synonym" in shape.extras:
        body |= {"real": Column("REAL", Integer), "alias": synonym("real")}
    if "computed" in shape.extras:
        body["doubled"] = Column("doubled", Integer, Computed("label * 2"))
    code: Any = body.get("code")
    for unique in shape.uniques:
        if unique == "code":
            constraints.append(UniqueConstraint(code))
        elif unique == "pair":
            constraints.append(UniqueConstraint(code, body["label"], name="the pair"))
        elif unique == "lower":
            constraints.append(Index("by lower", func.lower(code), unique=True))
        else:
            where = body["label"] >= literal_column("0")
            constraints.append(Index("in part", code, unique=True, postgresql_where=where, sqlite_where=where))
    mapping: dict[str, Any] = {}
    if shape.version in {"count", "twos"}:
        body["version"] = Column("version", Integer, nullable=False)
        mapping["version_id_col"] = body["version"]
        if shape.version == "twos":
            mapping["version_id_generator"] = lambda current: (current or 40) + 2
    bases = (Versioned, base) if shape.version == "kit" else (base,)
    if shape.inherits:
        body["kind"] = Column("kind", String(9), nullable=False)
        mapping |= {"polymorphic_on": body["kind"], "polymorphic_identity": "base"}
    body |= {"__tablename__": shape.name, "__table_args__": tuple(constraints), "__mapper_args__": mapping}
    entity: Any = type("Grammar", bases, {"__module__": __name__, **body})
    tables = [entity.__table__]
    if "unmapped" in shape.extras:
        entity.__table__.append_column(Column("unmapped", Integer, default=3, onupdate=4))
    if shape.inherits:
        below["__mapper_args__"] = {"polymorphic_identity": "child"}
        if shape.inherits == "joined":
            parents = list(entity.__table__.primary_key.columns)
            below |= {
                "__tablename__": f"{shape.name} child",
                entity.__mapper__.get_property_by_column(parents[0]).key: Column(
                    "parent", parents[0].type, ForeignKey(parents[0]), primary_key=True
                ),
            }
        entity = type("Child", (entity,), {"__module__": __name__, **below})
        if shape.inherits == "joined":
            tables.append(entity.__table__)
    attributes = [prop.key for prop in entity.__mapper__.column_attrs]
    return Built(shape, entity, tables, attributes, mapper_registry)


_ON_POSTGRESQL = """
CREATE FUNCTION grammar_trigger() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$;
"""


def _triggers(shape: Shape, table: Table, connection: Connection) -> list[str]:
    name = connection.dialect.identifier_preparer.format_table(table).replace("%%", "%")
    event = shape.trigger.removeprefix("skip ").upper()
    if connection.dialect.name == "sqlite":
        if shape.trigger == "change":
            update = f"UPDATE {name} SET note = upper(note), touched = coalesce(touched, 0) + 1 WHERE label = NEW.label"
            return [f"CREATE TRIGGER grammar_{e} AFTER {e} ON {name} BEGIN {update}; END" for e in ("INSERT", "UPDATE")]
        if shape.trigger:
            row = "NEW" if event == "INSERT" else "OLD"
            when = f"WHEN {row}.label % 3 = 1 BEGIN SELECT RAISE(IGNORE); END"
            return [f"CREATE TRIGGER grammar_skip BEFORE {event} ON {name} {when}"]
        return []
    if shape.key == "trigger":
        body = "IF NEW.key IS NULL THEN NEW.key := nextval('grammar_keys'); END IF; RETURN NEW;"
        begin, event = ["CREATE SEQUENCE grammar_keys INCREMENT -1"], "INSERT"
    elif shape.trigger == "change":
        body = "NEW.note := upper(NEW.note); NEW.touched := coalesce(NEW.touched, 0) + 1; RETURN NEW;"
        begin, event = [], "INSERT OR UPDATE"
    elif shape.trigger:
        row = "NEW" if event == "INSERT" else "OLD"
        kept = "OLD" if event == "DELETE" else "NEW"
        body, begin = f"IF {row}.label % 3 = 1 THEN RETURN NULL; END IF; RETURN {kept};", []
    else:
        return []
    trigger = f"CREATE TRIGGER grammar BEFORE {event} ON {name} FOR EACH ROW EXECUTE FUNCTION grammar_trigger()"
    return [*begin, _ON_POSTGRESQL.format(body=body), trigger]
