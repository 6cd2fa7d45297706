"""`settings=` and `role=`: what a transaction is set to, from its first statement to its end, and nowhere else."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from sessionkit import REQUIRED, SYSTEM, Preset, Retry
from sessionkit._parameters import PARAMETERS
from sessionkit.errors import OptionError, SettingRequired, UnexpectedRollback
from tests.contract.tenants import (
    OTHER_ROLE,
    ROLE,
    TENANT,
    Note,
    create_notes,
    create_roles,
    current_user,
    setting,
    tenants_seen,
)
from tests.support.models import User

if TYPE_CHECKING:
    from tests.support.doors import Door

postgresql = pytest.mark.doors(backend="postgresql")

UUID_ = UUID("6f1ed002-ab5d-4b2a-8b3a-5a5c7c5c9d10")
ONE = text("SELECT 1")


class Mine(Exception):
    pass


async def later() -> str:
    return "a"


def one_connection(doors: Door, **kw: Any) -> Any:
    """Return a factory whose pool has one connection: whatever is left on it, the next unit gets."""
    return doors.factory(doors.make_engine(pool_size=1, max_overflow=0), **kw)


# -- in force, and gone ---------------------------------------------------------------------------------------------


@postgresql
async def test_settings_are_in_force_from_the_first_statement_to_the_end_and_then_gone(doors: Door) -> None:
    Session = one_connection(doors)
    async with doors.scope(Session, settings={TENANT: "a", "app.lang": "en"}) as session:
        assert await setting(session) == "a"
        assert await setting(session, "app.lang") == "en"
    async with doors.session(Session) as session:
        # Not NULL: what was set once in a connection is empty afterwards, which is why a policy has nullif().
        assert await setting(session) == ""


@postgresql
@pytest.mark.parametrize(
    ("value", "text_"),
    [("a", "a"), (7, "7"), (-1, "-1"), (True, "true"), (False, "false"), (UUID_, str(UUID_)), ("", "")],
)
async def test_a_value_is_sent_as_its_text(doors: Door, value: Any, text_: str) -> None:
    async with doors.scope(settings={TENANT: value}) as session:
        assert await setting(session) == text_


@postgresql
@pytest.mark.parametrize(
    "value",
    [
        "it's",
        'a "quoted" one',
        "back\\slash \\' \\\\",
        "two\nlines\r\n\ttab",
        "%s %(name)s :name ${x} $1",
        "'); DROP TABLE users; --",
        "\u00fc\u20ac\U0001f600",
        pytest.param("x" * 2**20, id="1 MB"),
    ],
)
async def test_a_value_arrives_as_it_was_given(doors: Door, value: str) -> None:
    async with doors.scope(settings={TENANT: value}, lock_timeout=7) as session:
        assert await setting(session) == value
        async with doors.scope(settings={TENANT: value + "!"}, propagation="savepoint"):
            assert await setting(session) == value + "!"
        assert await setting(session) == value


@postgresql
async def test_a_role_is_that_of_the_transaction_and_of_nothing_else(doors: Door) -> None:
    await create_roles(doors)
    Session = one_connection(doors, role=ROLE)
    async with doors.session(Session) as session:
        me = await current_user(session)
    async with doors.scope(Session) as session:
        assert await current_user(session) == ROLE
    async with doors.scope(Session, role=None) as session:
        assert await current_user(session) == me
    async with doors.session(Session) as session:
        assert await current_user(session) == me


@postgresql
@pytest.mark.parametrize("how", ["exception", "statement", "rollback"])
async def test_nothing_is_left_after_a_unit_that_failed(doors: Door, how: str) -> None:
    await create_roles(doors)
    Session = one_connection(doors, settings={TENANT: "a"}, role=ROLE)
    with pytest.raises((Mine, DBAPIError)):
        async with doors.scope(Session) as session:
            assert await setting(session) == "a"
            if how == "statement":
                await session.execute(text("SELECT * FROM no_such_table"))
            raise Mine
    async with doors.session(Session) as session:
        assert await setting(session) == ""
        assert await current_user(session) != ROLE


@postgresql
async def test_the_rows_of_another_tenant_are_neither_seen_nor_written(doors: Door) -> None:
    await create_notes(doors, "a", "b")
    Session = one_connection(doors, role=ROLE)
    async with doors.scope(Session, settings={TENANT: "a"}) as session:
        assert await tenants_seen(session) == ["a"]
        session.add(Note(tenant="a", body="more"))
    with pytest.raises(DBAPIError, match="row-level security"):
        async with doors.scope(Session, settings={TENANT: "a"}) as session:
            session.add(Note(tenant="b", body="not mine"))
    async with doors.scope(Session) as session:
        assert await tenants_seen(session) == []


# -- what is sent ---------------------------------------------------------------------------------------------------


def kinds(statements: list[str]) -> list[str]:
    return [re.split(r"[\s(]", statement.strip())[0].upper() for statement in statements]


@postgresql
async def test_they_go_in_the_statement_that_the_timeouts_need_anyway(doors: Door) -> None:
    await create_roles(doors)
    preset = Preset("SERIALIZABLE", lock_timeout=7, statement_timeout=8)
    seen = []
    for options in ({}, {"settings": {TENANT: "a", "app.lang": "en"}, "role": ROLE}):
        with doors.statements() as sql:
            async with doors.scope(preset=preset, **options) as session:
                await session.execute(ONE)
                assert await setting(session, "lock_timeout") == "7s"
                assert await setting(session, "transaction_isolation") == "serializable"
        seen.append(kinds(sql))
    assert seen[0] == seen[1]


@postgresql
async def test_a_unit_that_asks_for_nothing_sends_nothing_for_them(doors: Door) -> None:
    with doors.statements() as sql:
        async with doors.scope(settings={"app.other": None}, role=None) as session:
            await session.execute(ONE)
    assert not [statement for statement in sql if "set_config" in statement]


@postgresql
async def test_a_unit_that_sends_nothing_sends_no_setting(doors: Door) -> None:
    with doors.statements() as sql:
        async with doors.scope(settings={TENANT: "a"}):
            pass
    assert sql == []


@postgresql
async def test_what_the_server_says_of_a_role_comes_before_the_first_statement_and_without_values(doors: Door) -> None:
    with doors.statements() as sql, pytest.raises(DBAPIError, match="no_such_role") as caught:
        async with doors.scope(role="no_such_role", settings={TENANT: "a secret"}) as session:
            session.add(User(name="ann"))
            await session.flush()
    assert "INSERT" not in kinds(sql)
    assert "a secret" not in str(caught.value)


@postgresql
async def test_what_the_server_says_of_a_setting_is_raised(doors: Door) -> None:
    with pytest.raises(DBAPIError, match="app.bad name"):
        async with doors.scope(settings={"app.bad name": 1}) as session:
            await session.execute(ONE)


# -- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1.5, ["a secret"], b"a secret", object(), "a secret\0", "a secret\ud800"])
async def test_a_value_that_has_no_text_is_refused_and_not_shown(doors: Door, value: Any) -> None:
    for given in (value, lambda: value):
        with pytest.raises(OptionError, match=re.escape(TENANT)) as caught:
            async with doors.scope(settings={TENANT: given}):
                raise AssertionError("entered")
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("statement_timeout", "statement_timeout="),
        ("Lock_Timeout", "lock_timeout="),
        ("idle_in_transaction_session_timeout", "idle_timeout="),
        ("role", "role="),
        ("session_authorization", "role="),
        ("transaction_isolation", "isolation="),
        ("transaction_read_only", "read_only="),
        ("default_transaction_deferrable", "deferrable="),
    ],
)
async def test_a_setting_that_has_an_option_of_its_own_is_refused_with_it(doors: Door, name: str, instead: str) -> None:
    with pytest.raises(OptionError, match=re.escape(instead)):
        doors.scope(settings={name: "1"})


@pytest.mark.parametrize(
    "given", ["app.tenant", 7, ["app.tenant"], {"": 1}, {7: 1}, {"a\0b": 1}, {"app.t": 1, "APP.T": 1}]
)
async def test_what_is_no_mapping_of_names_is_refused(doors: Door, given: Any) -> None:
    with pytest.raises(OptionError, match="settings"):
        doors.scope(settings=given)


async def test_a_name_without_a_dot_is_that_of_a_parameter_of_postgresql(doors: Door) -> None:
    for factory in (doors.factory, doors.scope):
        with pytest.raises(OptionError, match=r"'tenant'.*'app\.tenant'"):
            factory(settings={"tenant": 1})
    for name in ("search_path", "TimeZone", "work_mem"):
        doors.scope(settings={name: "x"})


@pytest.mark.doors("postgresql-sync")
async def test_the_parameters_that_are_known_are_those_of_the_server(doors: Door) -> None:
    found = await doors.rows(
        "SELECT lower(name) FROM pg_settings WHERE context IN ('user', 'superuser') AND strpos(name, '.') = 0 ORDER BY 1"
    )
    assert [name for (name,) in found if name not in PARAMETERS] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"settings": {TENANT: lambda: REQUIRED}}, r"'app\.tenant'.* with REQUIRED; a value is a str"),
        ({"settings": {TENANT: lambda: SYSTEM}}, r"'app\.tenant'.* with SYSTEM; a value is a str"),
        ({"role": SYSTEM}, "with SYSTEM; it is the name of a role"),
        ({"role": lambda: REQUIRED}, "with REQUIRED; it is the name of a role"),
        ({"role": "a\0b"}, "with a NUL in its name"),
        ({"role": lambda: "a\0b"}, "with a NUL in its name"),
        ({"settings": {TENANT: later}}, r"async function for 'app\.tenant'"),
        ({"settings": {TENANT: lambda a, b: 1}}, r"for 'app\.tenant' that takes arguments \(2 by position\)"),
        ({"settings": {TENANT: lambda *, r: 1}}, r"for 'app\.tenant' that takes arguments \(by name\)"),
        ({"settings": REQUIRED}, "it is a factory that requires"),
    ],
)
async def test_a_message_says_what_was_given_in_the_words_of_the_user(
    doors: Door, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        async with doors.scope(**options):
            raise AssertionError("entered")


async def test_settings_of_a_factory_are_required_by_name(doors: Door) -> None:
    with pytest.raises(OptionError, match=r'settings=\{"app\.tenant": REQUIRED\}'):
        doors.factory(settings=REQUIRED)


async def test_system_that_joins_is_pointed_to_a_savepoint(doors: Door) -> None:
    Session = await ignoring(doors, settings={TENANT: "a"})
    async with doors.scope(Session):
        with pytest.raises(OptionError, match="propagation='savepoint'"):
            async with doors.scope(Session, settings=SYSTEM, name="inner"):
                raise AssertionError("entered")


@pytest.mark.parametrize("role", ["", "none", "NONE", 7, "a\0b"])
async def test_what_is_no_role_is_refused(doors: Door, role: Any) -> None:
    with pytest.raises(OptionError, match="role"):
        doors.scope(role=role)
    with pytest.raises(OptionError, match="role"):
        async with doors.scope(role=lambda: role):
            raise AssertionError("entered")


async def test_an_async_function_is_refused_and_so_is_one_that_takes_arguments(doors: Door) -> None:
    for fn in (later, lambda request: "a"):
        with pytest.raises(OptionError, match="async|takes arguments"):
            doors.scope(settings={TENANT: fn})
        with pytest.raises(OptionError, match="async|takes arguments"):
            doors.scope(role=fn)
    with pytest.raises(OptionError, match="awaited"):
        async with doors.scope(settings={TENANT: lambda: later()}):
            raise AssertionError("entered")


@pytest.mark.doors(backend="sqlite")
@pytest.mark.parametrize("options", [{"settings": {TENANT: "a"}}, {"role": "r"}, {"settings": {TENANT: lambda: "a"}}])
async def test_sqlite_has_none_and_refuses_them(doors: Door, options: dict[str, Any]) -> None:
    with doors.statements() as sql, pytest.raises(OptionError, match="settings_on_sqlite"):
        async with doors.scope(**options):
            raise AssertionError("entered")
    assert sql == []
    async with doors.scope():
        for propagation in ("join", "savepoint"):
            with pytest.raises(OptionError, match="settings_on_sqlite"):
                async with doors.scope(propagation=propagation, **options):
                    raise AssertionError("entered")


@pytest.mark.doors(backend="sqlite")
async def test_on_sqlite_they_are_ignored_where_the_factory_says_so_and_demanded_and_compared_all_the_same(
    doors: Door,
) -> None:
    Session = doors.factory(settings={TENANT: REQUIRED}, settings_on_sqlite="ignore")
    with pytest.raises(SettingRequired):
        async with doors.scope(Session):
            raise AssertionError("entered")
    asked = []

    def tenant() -> str:
        asked.append(1)
        return "a"

    async with doors.scope(Session, settings={TENANT: tenant}) as session:
        session.add(User(name="ann"))
        with pytest.raises(OptionError, match="another value"):
            async with doors.scope(Session, settings={TENANT: "b"}):
                raise AssertionError("entered")
        async with doors.scope(Session, settings={TENANT: "b"}, propagation="savepoint"):
            async with doors.scope(Session, settings={TENANT: "b"}):
                session.add(User(name="bob"))
            with pytest.raises(OptionError, match="another value"):
                async with doors.scope(Session, settings={TENANT: "a"}):
                    raise AssertionError("entered")
        async with doors.scope(Session, settings={TENANT: "a"}):
            pass
    assert asked == [1]
    assert await doors.rows("SELECT name FROM users ORDER BY name") == [("ann",), ("bob",)]


async def test_settings_on_sqlite_is_one_of_two_words(doors: Door) -> None:
    with pytest.raises(OptionError, match="settings_on_sqlite"):
        doors.factory(settings_on_sqlite=True)


# -- required -------------------------------------------------------------------------------------------------------


async def ignoring(doors: Door, **kw: Any) -> Any:
    return doors.factory(settings_on_sqlite="ignore", **kw)


@pytest.mark.parametrize("given", [{}, {TENANT: None}, {TENANT: ""}, {TENANT: lambda: None}, {TENANT: lambda: ""}])
async def test_a_factory_that_requires_a_setting_opens_no_scope_without_it(doors: Door, given: dict[str, Any]) -> None:
    Session = await ignoring(doors, settings={TENANT: REQUIRED})
    with doors.statements() as sql, pytest.raises(SettingRequired, match=r'"app\.tenant": \.\.\.') as caught:
        async with doors.scope(Session, settings=given):
            raise AssertionError("entered")
    assert caught.value.setting == TENANT
    assert sql == []
    async with doors.scope(Session, settings={"App.Tenant": "a"}) as session:
        await session.execute(ONE)


@pytest.mark.parametrize("role", [None, lambda: None, lambda: ""])
async def test_a_factory_that_requires_a_role_opens_no_scope_without_one(doors: Door, role: Any) -> None:
    Session = await ignoring(doors, role=REQUIRED)
    for options in ({}, {"role": role}):
        with pytest.raises(SettingRequired, match="a role") as caught:
            async with doors.scope(Session, **options):
                raise AssertionError("entered")
        assert caught.value.setting == "role"


async def test_it_is_demanded_where_a_transaction_is_opened_and_not_at_decoration(doors: Door) -> None:
    Session = await ignoring(doors, settings={TENANT: REQUIRED})

    async def body(session: Any) -> str:
        return "done"

    decorated = doors.decorate(body, Session)
    with pytest.raises(SettingRequired, match="body"):
        await decorated()
    async with doors.scope(Session, settings={TENANT: "a"}):
        assert await decorated() == "done"
    with pytest.raises(SettingRequired):
        async for attempt in doors.attempts(Session, retry=3):
            async with attempt:
                raise AssertionError("entered")


async def test_required_is_a_word_of_factories(doors: Door) -> None:
    with pytest.raises(OptionError, match="REQUIRED"):
        doors.scope(settings={TENANT: REQUIRED})
    with pytest.raises(OptionError, match="REQUIRED"):
        doors.scope(role=REQUIRED)
    with pytest.raises(OptionError, match="SYSTEM"):
        doors.factory(settings=SYSTEM)


@pytest.mark.parametrize("options", [{"settings": {TENANT: REQUIRED}}, {"role": REQUIRED}])
async def test_the_plain_sessions_of_such_a_factory_send_nothing(doors: Door, options: dict[str, Any]) -> None:
    Session = await ignoring(doors, **options)
    with doors.statements() as sql:
        async with doors.session(Session) as session:
            for _ in range(2):
                with pytest.raises(SettingRequired):
                    await session.execute(ONE)
            session.add(User(name="ann"))
            with pytest.raises(SettingRequired):
                await session.commit()
        with pytest.raises(SettingRequired):
            async with doors.enter(Session.begin()) as session:
                await session.execute(ONE)
        async with doors.session(Session) as session:
            with pytest.raises(SettingRequired):
                async with session.begin_nested():
                    await session.execute(ONE)
        scoped = doors.scoped(Session)
        with pytest.raises(SettingRequired):
            await scoped.execute(ONE)
        await scoped.remove()
    assert sql == []


async def test_configure_can_demand_and_can_give_up_to_demand(doors: Door) -> None:
    Session = await ignoring(doors)
    Session.configure(settings={TENANT: REQUIRED})
    with pytest.raises(SettingRequired):
        async with doors.scope(Session):
            raise AssertionError("entered")
    async with doors.session(Session) as session:
        with pytest.raises(SettingRequired):
            await session.execute(ONE)
    Session.configure(settings=None)
    async with doors.scope(Session) as session:
        await session.execute(ONE)
    async with doors.session(Session) as session:
        await session.execute(ONE)


async def test_a_session_that_no_scope_owns_is_no_way_around(doors: Door) -> None:
    Session = await ignoring(doors, settings={TENANT: REQUIRED})
    plain = doors.plain_factory()

    async def body(session: Any) -> None:
        raise AssertionError("entered")

    decorated = doors.decorate(body, Session, form="keyword")
    async with doors.session(plain) as session:
        with pytest.raises(SettingRequired):
            await decorated(session=session)
    async with doors.scope(doors.factory()) as session:
        with pytest.raises(SettingRequired):
            await decorated(session=session)


async def test_options_of_a_function_are_refused_for_a_session_that_no_scope_owns(doors: Door) -> None:
    async def body(session: Any) -> None:
        raise AssertionError("entered")

    for options in ({"settings": {TENANT: "a"}}, {"role": "r"}, {"settings": SYSTEM}):
        decorated = doors.decorate(body, await ignoring(doors), form="keyword", **options)
        async with doors.session() as session:
            with pytest.raises(OptionError, match="passed in"):
                await decorated(session=session)


async def test_options_of_a_function_are_compared_with_the_scope_whose_session_was_passed_in(doors: Door) -> None:
    async def body(session: Any) -> str:
        return "done"

    Session = await ignoring(doors, settings={TENANT: REQUIRED})
    async with doors.scope(Session, settings={TENANT: "a"}) as session:
        for options in ({}, {"settings": {TENANT: "a"}}):
            assert await doors.decorate(body, Session, form="keyword", **options)(session=session) == "done"
        for options in ({"settings": {TENANT: "b"}}, {"role": "r"}, {"settings": SYSTEM}):
            with pytest.raises(OptionError, match="already runs"):
                await doors.decorate(body, Session, form="keyword", **options)(session=session)


# -- the way out ----------------------------------------------------------------------------------------------------


async def test_system_needs_a_name(doors: Door) -> None:
    Session = await ignoring(doors, settings={TENANT: REQUIRED}, role=REQUIRED)
    with pytest.raises(OptionError, match="name="):
        async with doors.scope(Session, settings=SYSTEM):
            raise AssertionError("entered")
    for name in ("", " ", "<lambda>"):
        with pytest.raises(OptionError, match="name="):
            async with doors.scope(Session, settings=SYSTEM, name=name):
                raise AssertionError("entered")
    with pytest.raises(OptionError, match="name="):
        await doors.twin(Session.scope(settings=SYSTEM).run, Session.scope(settings=SYSTEM).run)(lambda session: None)
    async with doors.scope(Session, settings=SYSTEM, name="reindex") as session:
        await session.execute(ONE)

    async def body(session: Any) -> str:
        return "done"

    assert await doors.decorate(body, Session, settings=SYSTEM)() == "done"


@postgresql
async def test_system_drops_the_settings_and_keeps_the_role(doors: Door) -> None:
    await create_roles(doors)
    Session = doors.factory(settings={TENANT: "a"}, role=ROLE)
    async with doors.scope(Session, settings=SYSTEM, name="reindex") as session:
        assert await setting(session) in (None, "")
        assert await current_user(session) == ROLE


# -- merging, joining, savepoints -----------------------------------------------------------------------------------


@postgresql
async def test_the_settings_of_a_scope_are_put_over_those_of_its_factory_by_name(doors: Door) -> None:
    Session = doors.factory(settings={TENANT: "a", "app.lang": "en", "app.zone": "utc"})
    async with doors.scope(Session, settings={"app.lang": "de", "app.zone": None}) as session:
        assert await setting(session) == "a"
        assert await setting(session, "app.lang") == "de"
        assert await setting(session, "app.zone") in (None, "")


async def test_a_scope_that_joins_must_ask_for_the_same_or_for_nothing(doors: Door) -> None:
    Session = await ignoring(doors, settings={"app.lang": lambda: "en"}, role="r")
    async with doors.scope(Session, settings={TENANT: 7}):
        for options in (
            {},
            {"settings": {TENANT: "7"}},
            {"settings": {TENANT: lambda: 7}},
            {"settings": {TENANT: None}},
            {"settings": {"APP.LANG": "en"}},
            {"role": "r"},
            {"role": lambda: "r"},
        ):
            async with doors.scope(Session, **options):
                pass
        for options in (
            {"settings": {TENANT: 8}},
            {"settings": {TENANT: lambda: 8}},
            {"settings": {"app.other": 8}},
            {"settings": SYSTEM, "name": "x"},
            {"role": "s"},
            {"role": None},
        ):
            with pytest.raises(OptionError, match="already runs"):
                async with doors.scope(Session, **options):
                    raise AssertionError("entered")


async def test_system_joins_system_only(doors: Door) -> None:
    Session = await ignoring(doors, settings={TENANT: REQUIRED})
    async with doors.scope(Session, settings=SYSTEM, name="outer"):
        async with doors.scope(Session):
            pass
        async with doors.scope(Session, settings=SYSTEM, name="inner"):
            pass
        with pytest.raises(OptionError, match="without it"):
            async with doors.scope(Session, settings={TENANT: 7}):
                raise AssertionError("entered")


@postgresql
async def test_propagation_new_asks_for_itself(doors: Door) -> None:
    Session = doors.factory(settings={TENANT: REQUIRED})
    async with doors.scope(Session, settings={TENANT: "a"}) as outer:
        async with doors.scope(Session, settings={TENANT: "b"}, propagation="new") as inner:
            assert await setting(inner) == "b"
        assert await setting(outer) == "a"
        with pytest.raises(SettingRequired):
            async with doors.scope(Session, propagation="new"):
                raise AssertionError("entered")


@postgresql
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("used", [False, True])
async def test_what_a_savepoint_scope_sets_holds_to_its_end_and_is_put_back(
    doors: Door, fails: bool, used: bool
) -> None:
    await create_roles(doors)
    Session = doors.factory(settings={TENANT: "a", "app.lang": "en"}, role=ROLE)
    async with doors.scope(Session) as session:
        if used:
            await session.execute(ONE)
        try:
            async with doors.scope(
                Session, settings={TENANT: "b", "app.new": "x"}, role=OTHER_ROLE, propagation="savepoint"
            ) as inner:
                assert await setting(inner) == "b"
                assert await setting(inner, "app.lang") == "en"
                assert await setting(inner, "app.new") == "x"
                assert await current_user(inner) == OTHER_ROLE
                async with doors.scope(Session, settings={TENANT: "c"}, role=None, propagation="savepoint"):
                    assert await setting(inner) == "c"
                    assert await current_user(inner) not in (ROLE, OTHER_ROLE)
                assert await setting(inner) == "b"
                assert await current_user(inner) == OTHER_ROLE
                if fails:
                    raise Mine
        except Mine:
            pass
        assert await setting(session) == "a"
        assert await setting(session, "app.lang") == "en"
        assert await setting(session, "app.new") in (None, "")
        assert await current_user(session) == ROLE


@postgresql
async def test_a_connection_that_a_savepoint_scope_uses_by_another_name_is_set_too(doors: Door) -> None:
    """One who holds the connection of before sends his statements past the session, and past its savepoint."""
    async with doors.scope(settings={TENANT: "a"}) as session:
        connection = await session.connection()
        async with doors.scope(settings={TENANT: "b"}, propagation="savepoint"):
            assert await setting(connection) == "b"
        assert await setting(connection) == "a"


@pytest.mark.parametrize(
    "given",
    [
        {"role": None},
        {"role": lambda: None},
        {"role": lambda: ""},
        {"settings": {TENANT: ""}},
        {"settings": {TENANT: lambda: ""}},
        {"settings": {TENANT: "b"}, "role": None},
    ],
)
async def test_a_savepoint_scope_drops_nothing_that_is_required(doors: Door, given: dict[str, Any]) -> None:
    await create_roles(doors)
    Session = await ignoring(doors, settings={TENANT: REQUIRED}, role=REQUIRED)
    async with doors.scope(Session, settings={TENANT: "a"}, role=lambda: ROLE) as session:
        with pytest.raises(SettingRequired) as caught:
            async with doors.scope(Session, propagation="savepoint", **given):
                raise AssertionError("entered")
        assert caught.value.setting == ("role" if "role" in given else TENANT)
        await session.execute(ONE)
        async with doors.scope(Session, settings={TENANT: None}, propagation="savepoint"):
            pass  # that of the outer one goes on


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({"settings": {TENANT: "a"}}, "role"),
        ({"settings": {TENANT: "a"}, "role": None}, "role"),
        ({"settings": {TENANT: ""}, "role": ROLE}, TENANT),
        ({"settings": {TENANT: lambda: None}, "role": ROLE}, TENANT),
        ({"settings": {"app.lang": "en"}, "role": ROLE}, TENANT),
    ],
)
async def test_a_savepoint_scope_that_leaves_system_needs_all_that_is_required(
    doors: Door, given: dict[str, Any], missing: str
) -> None:
    Session = await ignoring(doors, settings={TENANT: REQUIRED}, role=REQUIRED)
    async with doors.scope(Session, settings=SYSTEM, name="outer"):
        with pytest.raises(SettingRequired) as caught:
            async with doors.scope(Session, propagation="savepoint", **given):
                raise AssertionError("entered")
        assert caught.value.setting == missing


@postgresql
async def test_a_savepoint_scope_may_take_a_role_and_stay_in_system(doors: Door) -> None:
    await create_roles(doors)
    Session = doors.factory(settings={TENANT: REQUIRED}, role=REQUIRED)
    async with doors.scope(Session, settings=SYSTEM, name="outer") as session:
        async with doors.scope(Session, role=ROLE, propagation="savepoint"):
            assert await current_user(session) == ROLE
            async with doors.scope(Session, settings=SYSTEM, name="inner"):
                pass
        async with doors.scope(Session, settings={TENANT: "a"}, role=ROLE, propagation="savepoint"):
            assert (await setting(session), await current_user(session)) == ("a", ROLE)
            with pytest.raises(SettingRequired):
                async with doors.scope(Session, role=None, propagation="savepoint"):
                    raise AssertionError("entered")


@postgresql
async def test_a_savepoint_scope_in_system_and_system_in_a_savepoint_scope(doors: Door) -> None:
    Session = doors.factory(settings={TENANT: REQUIRED})
    async with doors.scope(Session, settings=SYSTEM, name="outer") as session:
        async with doors.scope(Session, settings={TENANT: "a"}, propagation="savepoint"):
            assert await setting(session) == "a"
            async with doors.scope(Session, settings={TENANT: "a"}):
                pass
            with pytest.raises(OptionError, match="already runs"):
                async with doors.scope(Session, settings=SYSTEM, name="inner"):
                    raise AssertionError("entered")
            async with doors.scope(Session, settings=SYSTEM, name="inner", propagation="savepoint"):
                assert await setting(session) == ""
            assert await setting(session) == "a"
        assert await setting(session) == ""


@postgresql
async def test_the_flush_at_the_end_of_a_savepoint_scope_is_the_inner_tenants(doors: Door) -> None:
    await create_notes(doors)
    Session = doors.factory(role=ROLE)
    async with doors.scope(Session, settings={TENANT: "a"}) as session:
        session.add(Note(tenant="a", body="before"))
        async with doors.scope(Session, settings={TENANT: "b"}, propagation="savepoint"):
            session.add(Note(tenant="b", body="inside"))
        session.add(Note(tenant="a", body="after"))
    assert await doors.rows("SELECT tenant, body FROM notes ORDER BY body") == [
        ("a", "after"),
        ("a", "before"),
        ("b", "inside"),
    ]


@postgresql
async def test_a_savepoint_scope_that_the_server_refuses_leaves_the_outer_one_usable(doors: Door) -> None:
    async with doors.scope(settings={TENANT: "a"}) as session:
        session.add(User(name="ann"))
        with pytest.raises(DBAPIError, match="no_such_role"):
            async with doors.scope(role="no_such_role", settings={TENANT: "b"}, propagation="savepoint"):
                raise AssertionError("entered")
        assert await setting(session) == "a"
        async with doors.scope(settings={TENANT: "a"}):
            pass
    assert await doors.rows("SELECT name FROM users") == [("ann",)]


@postgresql
async def test_a_savepoint_scope_whose_failure_was_swallowed_is_put_back_too(doors: Door) -> None:
    async with doors.scope(settings={TENANT: "a"}) as session:
        with pytest.raises(UnexpectedRollback):
            async with doors.scope(settings={TENANT: "b"}, propagation="savepoint"):
                with pytest.raises(DBAPIError):
                    await session.execute(text("SELECT * FROM no_such_table"))
        assert await setting(session) == "a"


@postgresql
async def test_a_read_only_savepoint_scope_narrows_as_well(doors: Door) -> None:
    async with doors.scope(settings={TENANT: "a"}) as session:
        async with doors.scope(settings={TENANT: "b"}, propagation="savepoint", read_only=True):
            assert await setting(session) == "b"
            assert await setting(session, "transaction_read_only") == "on"
        assert await setting(session) == "a"
        assert await setting(session, "transaction_read_only") == "off"


@postgresql
@pytest.mark.filterwarnings("ignore::sessionkit.errors.ManualCommit")
async def test_commits_and_rollbacks_by_hand_change_nothing_of_it(doors: Door) -> None:
    Session = doors.factory(settings={TENANT: "a"}, manual_commit="savepoint")
    async with doors.scope(Session) as session:
        await session.execute(ONE)
        await session.commit()
        assert await setting(session) == "a"
        async with doors.scope(Session, settings={TENANT: "b"}, propagation="savepoint"):
            await session.execute(ONE)
            await session.commit()
            assert await setting(session) == "b"
            await session.execute(ONE)
            await session.rollback()
            assert await setting(session) == "b"
        assert await setting(session) == "a"
        await session.rollback()
        assert await setting(session) == "a"


# -- asked when -----------------------------------------------------------------------------------------------------


@postgresql
async def test_functions_are_asked_once_for_each_attempt(doors: Door) -> None:
    tenants = iter(["a", "b", "c"])
    seen = []

    async def body(session: Any) -> None:
        seen.append(await setting(session))
        if len(seen) < 3:
            raise Mine

    Session = doors.factory(settings={TENANT: lambda: next(tenants)})
    await doors.decorate(body, Session, retry=Retry(5, wait=0, on=Mine))()
    assert seen == ["a", "b", "c"]


async def test_an_error_of_a_function_leaves_the_entry_as_it_is_and_nothing_open(doors: Door) -> None:
    def tenant() -> str:
        raise Mine

    Session = await ignoring(doors, settings={TENANT: tenant})
    with doors.statements() as sql, pytest.raises(Mine):
        async with doors.scope(Session):
            raise AssertionError("entered")
    assert sql == []


@postgresql
async def test_run_and_attempts_have_them_too(doors: Door) -> None:
    Session = doors.factory(settings={TENANT: REQUIRED})
    scope = Session.scope(settings={TENANT: "a"})
    run = doors.twin(scope.run, scope.run)

    async def body(session: Any) -> str | None:
        return await setting(session)

    assert await run(doors._coloured(body)) == "a"
    async for attempt in doors.attempts(Session, settings={TENANT: "b"}):
        async with attempt as session:
            assert await setting(session) == "b"
