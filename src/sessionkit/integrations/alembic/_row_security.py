"""Row-level security of a table: a policy from a template, in force for the owner too; PostgreSQL's.

The policy compares a column with a setting of the transaction, as ``settings=`` of a scope gives it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from alembic.operations import MigrateOperation, Operations
from sqlalchemy import Enum, Float, Numeric, String, text
from sqlalchemy.dialects.postgresql import DOMAIN
from sqlalchemy.types import TypeEngine

from ..._spi import _dialects, why_unknown
from ._errors import MigrationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alembic.autogenerate.api import AutogenContext
    from alembic.operations.ops import UpgradeOps

__all__ = ["INFO", "POLICY", "DisableRowSecurityOp", "EnableRowSecurityOp", "register", "register_rendering"]

INFO = "sessionkit_row_security"
"""Under this name the ``info`` of a table tells autogenerate of its column and setting."""

POLICY = "sessionkit_tenant"
"""The policy's name where none was given."""


class RowSecurityOp(MigrateOperation):
    """An operation on the row-level security of a table: what both share."""

    word: str

    def __init__(
        self,
        table_name: str,
        column_name: str | None,
        setting: str | None,
        *,
        type_: TypeEngine[Any] | type[TypeEngine[Any]] | str | None,
        using: str | None,
        policy: str,
        to: str | Sequence[str] | None,
        force: bool,
        schema: str | None,
    ) -> None:
        given: dict[str, Any] = {"table_name": table_name, "policy": policy}
        if using is None:
            given |= {"column_name": column_name, "setting": setting}
        elif column_name is not None or setting is not None:
            raise MigrationError(
                f"op.{self.word}({table_name!r}) was given using= and a column with a setting as well; the template is made of "
                "those two, and using= takes its place"
            )
        else:
            given["using"] = using
        for name, value in given.items():
            if not isinstance(value, str) or not value.strip():
                raise MigrationError(
                    f"{name}={value!r} was given to op.{self.word}() for the table {table_name!r}; it is a string that is not "
                    "empty"
                )
        if using is None and setting is not None and (problem := why_unknown(setting)):
            raise MigrationError(f"setting={setting!r} was given to op.{self.word}({table_name!r}); {problem}")
        roles: tuple[Any, ...] | None = None if to is None else (to,) if isinstance(to, str) else tuple(to)
        if roles is not None and not (roles and all(isinstance(role, str) and role.strip() for role in roles)):
            raise MigrationError(
                f"to={to!r} was given to op.{self.word}({table_name!r}); it is the name of a role or a list of names, or None "
                "for all roles"
            )
        self.table_name = table_name
        self.column_name = column_name
        self.setting = setting
        self.type_ = type_
        self.using = using
        self.policy = policy
        self.to: tuple[str, ...] = roles or ()
        self.force = force
        self.schema = schema

    @property
    def options(self) -> dict[str, Any]:
        """Return the arguments that are given by name."""
        return {
            "type_": self.type_,
            "using": self.using,
            "policy": self.policy,
            "to": self.to or None,
            "force": self.force,
            "schema": self.schema,
        }

    def table(self, dialect: Any) -> str:
        """Return the table as SQL names it."""
        preparer = dialect.identifier_preparer
        name: str = preparer.quote(self.table_name)
        return f"{preparer.quote_schema(self.schema)}.{name}" if self.schema else name


class EnableRowSecurityOp(RowSecurityOp):
    """Keep the rows of a table apart by a setting of the transaction. See `enable_row_security`."""

    word = "enable_row_security"

    @classmethod
    def enable_row_security(
        cls,
        operations: Operations,
        table_name: str,
        column_name: str | None = None,
        setting: str | None = None,
        *,
        type_: TypeEngine[Any] | type[TypeEngine[Any]] | str | None = None,
        using: str | None = None,
        policy: str = POLICY,
        to: str | Sequence[str] | None = None,
        force: bool = True,
        schema: str | None = None,
    ) -> None:
        """Have a transaction see and write only the rows whose column is what its setting says.

        A transaction that has no such setting sees no row and writes none: also where its connection had one before,
        which leaves an empty string behind. The policy goes for reading and writing.

        Args:
            operations: given by Alembic.
            table_name: the table.
            column_name: the column that tells whose a row is.
            setting: the setting of the transaction, such as ``"app.tenant"``.
            type_: the type of the column, of SQLAlchemy's or as SQL; default: read from the database. A migration that
                is written out as SQL (``--sql``) needs it; for a column of a domain, write the type below the domain.
                Its length or precision is left out, since a cast to it would make another tenant of a value.
            using: an SQL condition of your own, instead of column and setting.
            policy: what the policy is called.
            to: the role, or roles, that it goes for; default: all.
            force: True (default): the owner of the table is bound too. A superuser and a role with BYPASSRLS never are.
            schema: the table's schema.

        Raises:
            MigrationError: the database is not PostgreSQL, the table has no such column, or an argument has a value that
                it cannot have.

        SQL::

            CREATE POLICY sessionkit_tenant ON notes
                USING (tenant_id = CAST(nullif(current_setting('app.tenant', true), '') AS integer))
                WITH CHECK (tenant_id = CAST(nullif(current_setting('app.tenant', true), '') AS integer));
            ALTER TABLE notes ENABLE ROW LEVEL SECURITY;
            ALTER TABLE notes FORCE ROW LEVEL SECURITY
        """
        options: dict[str, Any] = {"type_": type_, "using": using, "policy": policy, "to": to, "force": force}
        operations.invoke(cls(table_name, column_name, setting, **options, schema=schema))

    def reverse(self) -> DisableRowSecurityOp:
        """Return the operation that undoes it."""
        return DisableRowSecurityOp(self.table_name, self.column_name, self.setting, **self.options)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return the difference as ``compare_metadata`` lists it."""
        return (self.word, self.schema, self.table_name, self.column_name, self.setting)


class DisableRowSecurityOp(RowSecurityOp):
    """Undo `EnableRowSecurityOp`. See `disable_row_security`."""

    word = "disable_row_security"

    @classmethod
    def disable_row_security(
        cls,
        operations: Operations,
        table_name: str,
        column_name: str | None = None,
        setting: str | None = None,
        *,
        type_: TypeEngine[Any] | type[TypeEngine[Any]] | str | None = None,
        using: str | None = None,
        policy: str = POLICY,
        to: str | Sequence[str] | None = None,
        force: bool = True,
        schema: str | None = None,
    ) -> None:
        """Drop the policy, and let everybody who may read the table see all of it.

        Other policies of the table stay, but none of them is in force until row-level security is enabled again.

        Args:
            operations: given by Alembic.
            table_name: the table.
            column_name, setting, type_, using, to, force: as in ``op.enable_row_security()``. Only the way back needs them.
            policy: what the policy is called.
            schema: the table's schema.

        SQL::

            ALTER TABLE notes NO FORCE ROW LEVEL SECURITY;
            ALTER TABLE notes DISABLE ROW LEVEL SECURITY;
            DROP POLICY sessionkit_tenant ON notes
        """
        if using is None and column_name is None and setting is None:
            using = "true"  # it is dropped, whatever it said
        options: dict[str, Any] = {"type_": type_, "using": using, "policy": policy, "to": to, "force": force}
        operations.invoke(cls(table_name, column_name, setting, **options, schema=schema))

    def reverse(self) -> EnableRowSecurityOp:
        """Return the operation that undoes it."""
        return EnableRowSecurityOp(self.table_name, self.column_name, self.setting, **self.options)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return the difference as ``compare_metadata`` lists it."""
        return (self.word, self.schema, self.table_name, self.column_name, self.setting)


# -- how it is done -------------------------------------------------------------------------------------------------


def register() -> None:
    """Tell Alembic of the operations, through the door that its own go through."""
    for cls in (EnableRowSecurityOp, DisableRowSecurityOp):
        Operations.register_operation(cls.word)(cls)
    Operations.implementation_for(EnableRowSecurityOp)(_enable)
    Operations.implementation_for(DisableRowSecurityOp)(_disable)


def _enable(operations: Operations, operation: EnableRowSecurityOp) -> None:
    dialect = _dialect(operations, operation)
    table, quote = operation.table(dialect), dialect.identifier_preparer.quote
    if not operations.get_context().as_sql and operations.get_bind().execute(_TABLE, {"name": table}).scalar() is None:
        raise MigrationError(
            f"op.{operation.word}({operation.table_name!r}) was asked for, but there is no table {table}; create it before, or "
            "write schema="
        )
    condition = operation.using or _template(operations, operation, dialect)
    to = f" TO {', '.join(map(_role(quote), operation.to))}" if operation.to else ""
    _say(
        operations,
        f"CREATE POLICY {quote(operation.policy)} ON {table}{to} USING ({condition}) WITH CHECK ({condition})",
    )
    _say(operations, f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    if operation.force:
        _say(operations, f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY")


_TABLE = text("SELECT CAST(to_regclass(:name) AS text)")


def _disable(operations: Operations, operation: DisableRowSecurityOp) -> None:
    dialect = _dialect(operations, operation)
    table, quote = operation.table(dialect), dialect.identifier_preparer.quote
    _say(operations, f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY")
    _say(operations, f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
    _say(operations, f"DROP POLICY {quote(operation.policy)} ON {table}")


def _say(operations: Operations, statement: str) -> None:
    operations.execute(text(statement.replace("\\", "\\\\").replace(":", "\\:")))  # nothing in it is bound


def _role(quote: Any) -> Any:
    special = {"public", "current_user", "session_user", "current_role"}
    return lambda name: name.upper() if name.lower() in special else quote(name)


def _dialect(operations: Operations, operation: RowSecurityOp) -> Any:
    dialect: Any = operations.impl.dialect
    if not _dialects.of_name(dialect.name).row_security:
        raise MigrationError(
            f"op.{operation.word}({operation.table_name!r}) was asked for on {dialect.name}, which has no row-level security; "
            "leave it out there, with `if op.get_context().dialect.name == 'postgresql'`"
        )
    return dialect


def _template(operations: Operations, operation: EnableRowSecurityOp, dialect: Any) -> str:
    column = dialect.identifier_preparer.quote(operation.column_name)
    string: Any = String()
    literal = string.literal_processor(dialect)
    setting = f"nullif(current_setting({literal(operation.setting)}, true), '')"
    return f"{column} = CAST({setting} AS {_type(operations, operation, dialect)})"


# Not by reflection, which leaves out what SQLAlchemy has no type for. The modifier -1 and not NULL: with NULL, character and
# bit are read back as character(1) and bit(1).
_TYPE = """
    WITH RECURSIVE base AS (
        {first}
        UNION ALL
        SELECT t.typbasetype FROM base JOIN pg_type t ON t.oid = base.type WHERE t.typtype = 'd'
    )
    SELECT CASE WHEN t.oid IN (CAST('"char"' AS regtype), CAST('name' AS regtype)) THEN 'text' ELSE format_type(t.oid, -1) END
    FROM base JOIN pg_type t ON t.oid = base.type WHERE t.typtype <> 'd'
"""
_OF_A_COLUMN = text(
    _TYPE.format(
        first="SELECT a.atttypid AS type FROM pg_attribute a WHERE a.attrelid = to_regclass(:name) AND a.attname = :column "
        "AND a.attnum > 0 AND NOT a.attisdropped"
    )
)
_OF_A_NAME = text(_TYPE.format(first="SELECT CAST(to_regtype(:name) AS oid) AS type"))


def _type(operations: Operations, operation: EnableRowSecurityOp, dialect: Any) -> str:
    """Return the type that the setting is cast to: without a length or precision, which would cut off or round its value.

    With them the setting of one tenant could become that of another: "acme-ltd-evil" as varchar(8) is "acme-ltd".
    """
    offline = operations.get_context().as_sql
    if operation.type_ is not None:
        written = _written(operation.type_, dialect)
        found = None if offline else operations.get_bind().execute(_OF_A_NAME, {"name": written}).scalar()
        return _without_modifiers(written) if found is None else str(found)
    if offline:
        raise MigrationError(
            f"op.{operation.word}({operation.table_name!r}) is written out as SQL, where no database tells the type of "
            f"{operation.column_name!r}; write type_=, such as type_=sa.Integer()"
        )
    column = {"name": operation.table(dialect), "column": operation.column_name}
    told = operations.get_bind().execute(_OF_A_COLUMN, column).scalar()
    if told is None:
        raise MigrationError(f"there is no column {operation.column_name!r} in a table {operation.table(dialect)}")
    return str(told)


def _written(type_: Any, dialect: Any) -> str:
    if isinstance(type_, str):
        return type_
    found: Any = type_() if isinstance(type_, type) else type_
    while isinstance(found, DOMAIN):
        found = found.data_type
    made: str = dialect.type_compiler_instance.process(found)
    return made


_PARTS = re.compile(r'"(?:[^"]|"")*"|\(\s*-?\d[^()]*\)|[^"(]+|\(')
_FLOAT = re.compile(r"\s*float\s*\(", re.IGNORECASE)
_CUTS = (
    (
        re.compile(r"(?:(?:national\s+)?character|(?:national\s+)?char|nchar|bpchar)(?!\s+varying)\b", re.IGNORECASE),
        "bpchar",
    ),
    (re.compile(r"bit(?!\s+varying)\b", re.IGNORECASE), '"bit"'),
    (re.compile(r"interval\b[a-z ]*", re.IGNORECASE), "interval"),
    (re.compile(r'"char"|name\b', re.IGNORECASE), "text"),
)


def _without_modifiers(written: str) -> str:
    """Return a type as SQL without its length or precision, where no database can be asked."""
    if _FLOAT.match(written):  # its precision says which type it is
        return written
    kept = "".join(part for part in _PARTS.findall(written) if not re.match(r"\(\s*-?\d", part))
    plain = kept.strip()
    for cut, whole in _CUTS:
        if found := cut.match(plain):
            return whole + plain[found.end() :]
    return plain


# -- autogenerate ---------------------------------------------------------------------------------------------------


def register_rendering() -> None:
    """Tell Alembic how the operations are written."""
    # Not from alembic.autogenerate, which is half imported when Alembic loads its plugins.
    from alembic.autogenerate.render import renderers

    renderers.dispatch_for(EnableRowSecurityOp)(_render)
    renderers.dispatch_for(DisableRowSecurityOp)(_render)


def _render(context: AutogenContext, op: RowSecurityOp) -> str:
    from alembic.autogenerate.render import _repr_type

    context.imports.add("import sessionkit.integrations.alembic")
    prefix = context.opts.get("alembic_module_prefix") or ""
    arguments = [repr(str(op.table_name))]
    if op.using is None:
        arguments += [repr(op.column_name), repr(op.setting)]
    else:
        arguments.append(f"using={op.using!r}")
    if op.type_ is not None:
        type_: Any = op.type_
        arguments.append(f"type_={type_!r}" if isinstance(type_, str) else f"type_={_repr_type(type_, context)}")
    if op.policy != POLICY:
        arguments.append(f"policy={op.policy!r}")
    if op.to:
        arguments.append(f"to={list(op.to)!r}")
    if not op.force:
        arguments.append("force=False")
    if op.schema:
        arguments.append(f"schema={str(op.schema)!r}")
    return f"{prefix}{op.word}({', '.join(arguments)})"


_POLICIES = text("SELECT polname FROM pg_policy WHERE polrelid = to_regclass(:name)")


def compare(context: AutogenContext, upgrade_ops: UpgradeOps) -> None:
    """Add what the models say of row-level security and the database does not have.

    A table says it by its ``info``: ``{"sessionkit_row_security": {"column_name": "tenant_id", "setting": "app.tenant"}}``,
    with any other argument of the operation.
    """
    if context.connection is None or not _dialects.of_name(context.dialect.name).row_security:
        return
    for table in context.sorted_tables:
        said = table.info.get(INFO)
        if said is None or not context.run_object_filters(table, table.name, "table", False, None):
            continue
        if not isinstance(said, Mapping):
            raise MigrationError(
                f"the info of {table.fullname} has {INFO!r} as {type(said).__name__}; it is a dict of the arguments of "
                'op.enable_row_security(), such as {"column_name": "tenant_id", "setting": "app.tenant"}'
            )
        options: dict[str, Any] = {
            "type_": None, "using": None, "policy": POLICY, "to": None, "force": True, "schema": table.schema
        } | {"column_name": None, "setting": None, **said}  # fmt: skip
        if unknown := options.keys() - {"column_name", "setting", *_ARGUMENTS}:
            raise MigrationError(
                f"the info of {table.fullname} has {min(unknown, key=str)!r}, which op.enable_row_security() has not"
            )
        column, setting = options.pop("column_name"), options.pop("setting")
        if options["type_"] is None and isinstance(column, str) and column in table.c:
            options["type_"] = _whole(table.c[column].type)
        op = EnableRowSecurityOp(table.name, column, setting, **options)
        there = context.connection.execute(_POLICIES, {"name": op.table(context.dialect)}).scalars().all()
        if op.policy not in there:
            upgrade_ops.ops.append(op)


def _whole(type_: TypeEngine[Any]) -> TypeEngine[Any]:
    """Return a type without its length or precision, as the policy casts to it."""
    if isinstance(type_, String) and not isinstance(type_, Enum):
        return type_.adapt(type(type_), length=None)
    if isinstance(type_, Numeric) and not isinstance(type_, Float):
        return type_.adapt(type(type_), precision=None, scale=None)
    return type_


_ARGUMENTS = ("type_", "using", "policy", "to", "force", "schema")
