"""Row-level security on PostgreSQL: whom it binds, and what its policies want to know of a transaction."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import text

from sessionkit._spi import FactoryInfo, factory_key
from sessionkit.errors import ScopeError, message_of

from ._finding import Finding, fail, ok, warn
from ._patient import Unusable
from ._words import a_few

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy.engine import Connection

    from ._patient import Patient

__all__ = ["Tenancy", "row_security", "tenancy_of"]


class Tenancy(NamedTuple):
    """What a factory sets its transactions to.

    Attributes:
        asked: how it was named.
        settings: the names of the settings that it gives or requires, in lower case.
        role: the name of the role; None: that of who connects; "": it is known when a scope is entered.
    """

    asked: str
    settings: frozenset[str]
    role: str | None


def tenancy_of(asked: str, found: Any) -> Tenancy:
    """Return what a factory sets its transactions to.

    Raises:
        Unusable: it is no factory.
    """
    try:
        settings = FactoryInfo.of(factory_key(found), "--factory").defaults.settings
    except ScopeError as error:
        raise Unusable(f"--factory is {asked!r}: {message_of(error)}") from error
    names = frozenset([*settings.required, *(name for name, _ in settings.values)])
    role = "" if settings.role_required or callable(settings.role) else settings.role
    return Tenancy(asked, names, role)


_TABLES = text("""
    SELECT c.oid, CAST(CAST(c.oid AS regclass) AS text) AS name, c.relrowsecurity AS enabled,
           c.relforcerowsecurity AS forced, c.relowner AS owner, CAST(pg_get_userbyid(c.relowner) AS text) AS owner_name
    FROM pg_class c
    WHERE c.relkind IN ('r', 'p')
      AND (c.relrowsecurity OR EXISTS (SELECT 1 FROM pg_policy p WHERE p.polrelid = c.oid))
    ORDER BY 2
""")
_POLICIES = text("""
    WITH RECURSIVE domains AS (
        SELECT d.objid AS policy, d.refobjid AS type FROM pg_depend d
        WHERE d.classid = CAST('pg_policy' AS regclass) AND d.refclassid = CAST('pg_type' AS regclass)
        UNION ALL
        SELECT o.policy, t.typbasetype FROM domains o JOIN pg_type t ON t.oid = o.type WHERE t.typtype = 'd'
    )
    SELECT CAST(p.polname AS text) AS policy, CAST(CAST(p.polrelid AS regclass) AS text) AS name,
           coalesce(pg_get_expr(p.polqual, p.polrelid), '') || ' ' || coalesce(pg_get_expr(p.polwithcheck, p.polrelid), '')
           AS condition,
           EXISTS (SELECT FROM domains o JOIN pg_type t ON t.oid = o.type
                   WHERE o.policy = p.oid AND t.typtype = 'd' AND t.typtypmod <> -1) AS cuts
    FROM pg_policy p ORDER BY 2, 1
""")
_CURRENT = text("SELECT CAST(current_user AS text)")
_ROLE = text("SELECT rolsuper, rolbypassrls FROM pg_roles WHERE rolname = :role")
_OWNS = text("SELECT pg_has_role(CAST(:role AS name), CAST(:owner AS oid), 'USAGE')")
# A view reads its tables as its owner, unless it says otherwise (from PostgreSQL 15 on).
_VIEWS = text("""
    SELECT DISTINCT CAST(CAST(v.oid AS regclass) AS text) AS name, CAST(pg_get_userbyid(v.relowner) AS text) AS owner_name
    FROM pg_class v
    JOIN pg_rewrite r ON r.ev_class = v.oid
    JOIN pg_depend d ON d.objid = r.oid AND d.classid = CAST('pg_rewrite' AS regclass)
    JOIN pg_class t ON t.oid = d.refobjid AND d.refclassid = CAST('pg_class' AS regclass) AND t.relrowsecurity
    JOIN pg_roles o ON o.oid = v.relowner
    WHERE (v.relkind = 'm' OR (v.relkind = 'v'
           AND NOT coalesce(v.reloptions && ARRAY['security_invoker=true', 'security_invoker=on'], false)))
      AND (v.relkind = 'm' OR o.rolsuper OR o.rolbypassrls
           OR (NOT t.relforcerowsecurity AND pg_has_role(v.relowner, t.relowner, 'USAGE')))
    ORDER BY 1
""")

_SETTING = re.compile(r"current_setting\('((?:[^']|'')+)'")
_GUARDED = re.compile(r"NULLIF\(current_setting\('(?:[^']|'')+'(?:::text)?, true\)", re.IGNORECASE)
# A cast to such a type cuts off or rounds the setting, so two tenants may become one.
_CUTTING = re.compile(
    r"current_setting\('(?:[^']|'')+'(?:::text)?(?:, (?:true|false))?\)(?:, ''::text\))?\)*"
    r'::(?:name\b|"char"|interval (?:year|month|day|hour|minute|second)|[a-z ]+\(\d)',
    re.IGNORECASE,
)
# A policy that lets a transaction without the setting through also lets one through that has forgotten it.
_UNSET = re.compile(
    r"(?:NULLIF\()?current_setting\('(?:[^']|'')+'(?:::text)?(?:, (?:true|false))?\)"
    r"(?:, ''::text\))?\)? (?:IS NULL|= ''::text)",
    re.IGNORECASE,
)


def row_security(connection: Connection, patient: Patient, factories: Sequence[Tenancy]) -> Iterator[Finding]:
    """Look at row-level security, where there is any."""
    tables: list[Any] = list(connection.execute(_TABLES))
    if not tables:
        return
    policies: list[Any] = list(connection.execute(_POLICIES))
    yield from _tables(tables)
    yield from _policies(policies)
    yield from _roles(connection, tables, factories)
    yield from _settings(policies, factories)
    yield from _views(connection)


def _tables(tables: list[Any]) -> Iterator[Finding]:
    check = "rls.tables"
    off = [row.name for row in tables if not row.enabled]
    unforced = [row.name for row in tables if row.enabled and not row.forced]
    if off:
        yield fail(
            check,
            f"with policies that are not in force: {a_few(off)}",
            f"ALTER TABLE {off[0]} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
        )
    if unforced:
        yield warn(
            check,
            f"whose owner no policy binds: {a_few(unforced)}",
            f"ALTER TABLE {unforced[0]} FORCE ROW LEVEL SECURITY, or have the application connect as another role",
        )
    if not off and not unforced:
        yield ok(check, f"{len(tables)} with row-level security, which binds their owners too")


def _policies(policies: list[Any]) -> Iterator[Finding]:
    check = "rls.policies"
    bare = [
        f"{row.policy} on {row.name}"
        for row in policies
        if len(_SETTING.findall(row.condition)) > len(_GUARDED.findall(row.condition))
    ]
    open_ = [f"{row.policy} on {row.name}" for row in policies if _UNSET.search(row.condition)]
    if open_:
        yield fail(
            check,
            f"let a transaction through that has no setting: {a_few(open_)}",
            "take `... IS NULL OR` out of the policy, and have what is for all tenants run as a role with a policy of its own",
        )
    if bare:
        yield fail(
            check,
            f"compare a setting that is empty, and not NULL, once a connection was used: {a_few(bare)}",
            "nullif(current_setting('...', true), '') instead of current_setting('...')",
        )
    cutting = [f"{row.policy} on {row.name}" for row in policies if row.cuts or _CUTTING.search(row.condition)]
    if cutting:
        yield fail(
            check,
            f"cast a setting to a type with a length or precision, so that one tenant may pass for another: {a_few(cutting)}",
            "cast to the type without it, such as varchar for varchar(8); op.enable_row_security() writes such a policy",
        )
    if policies and not bare and not open_ and not cutting:
        yield ok(check, f"{len(policies)}, none of which takes an empty setting for a value")


def _roles(connection: Connection, tables: list[Any], factories: Sequence[Tenancy]) -> Iterator[Finding]:
    check = "rls.role"
    current = str(connection.execute(_CURRENT).scalar_one())
    roles = {current: "who connects"} if not factories else {}
    for factory in factories:
        if factory.role != "":
            roles.setdefault(factory.role or current, f"of {factory.asked}")
    for role, whose in roles.items():
        found = connection.execute(_ROLE, {"role": role}).one_or_none()
        if found is None:
            yield fail(check, f"the role {role} ({whose}) does not exist", f'CREATE ROLE "{role}" NOLOGIN')
            continue
        why = "a superuser" if found.rolsuper else "BYPASSRLS" if found.rolbypassrls else None
        owned = [
            row.name
            for row in tables
            if not row.forced and connection.execute(_OWNS, {"role": role, "owner": row.owner}).scalar_one()
        ]
        if why is not None:
            yield fail(
                check,
                f"no policy binds the role {role} ({whose}): it is {why}",
                "give the factory role= with an ordinary role, or connect as one",
            )
        elif owned:
            yield fail(
                check,
                f"no policy binds the role {role} ({whose}) on what it owns: {a_few(owned)}",
                f"ALTER TABLE {owned[0]} FORCE ROW LEVEL SECURITY, or role= with a role that owns nothing",
            )
        else:
            yield ok(check, f"the policies bind the role {role} ({whose})")
    if asked := [factory.asked for factory in factories if factory.role == ""]:
        yield warn(
            check,
            f"not known here, since a scope gives the role: {a_few(asked)}",
            "check the roles that it may give: none of them may be a superuser, have BYPASSRLS or own the tables",
        )


def _settings(policies: list[Any], factories: Sequence[Tenancy]) -> Iterator[Finding]:
    check = "rls.settings"
    used: dict[str, str] = {}
    for row in policies:
        for name in _SETTING.findall(row.condition):
            used.setdefault(name.replace("''", "'").lower(), f"{row.policy} on {row.name}")
    if not used:
        return
    if not factories:
        yield ok(check, f"the policies read {a_few(used)} (--factory checks whether a factory gives it)")
        return
    given = frozenset[str]().union(*(factory.settings for factory in factories))
    missing = {name: policy for name, policy in used.items() if name not in given}
    for name, policy in missing.items():
        yield fail(
            check,
            f"{name} is read by {policy}, and no factory gives or requires it",
            f'sessionmaker(..., settings={{"{name}": REQUIRED}})',
        )
    if not missing:
        yield ok(check, f"the policies read {a_few(used)}, which the factories give or require")


def _views(connection: Connection) -> Iterator[Finding]:
    rows: list[Any] = list(connection.execute(_VIEWS))
    if rows:
        yield warn(
            "rls.views",
            f"show what their owner sees, and not who asks: {a_few(row.name for row in rows)}",
            f"ALTER VIEW {rows[0].name} SET (security_invoker = true) (from PostgreSQL 15 on; a materialized view cannot)",
        )
