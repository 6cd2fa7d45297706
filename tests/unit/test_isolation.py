"""Presets as values, and what each dialect makes of a level: no database is asked."""

from __future__ import annotations

import sqlite3
from dataclasses import FrozenInstanceError, fields
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, orm
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.engine import default
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

import sessionkit
from sessionkit import (
    READ_COMMITTED,
    READ_ONLY,
    REPEATABLE_READ,
    REPORT,
    SERIALIZABLE,
    SNAPSHOT,
    Isolation,
    Preset,
    effective_isolation,
    errors,
)
from sessionkit._dialects import Dialect, _base, of, of_name, register

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Engine

TIMEOUTS = ("statement_timeout", "lock_timeout", "idle_timeout")


# Isolation


def test_the_levels_have_sqlalchemys_spelling_and_come_weakest_first() -> None:
    assert [str(level) for level in Isolation] == list(_base.LEVELS)
    assert [level.strength for level in Isolation] == [0, 1, 2, 3]


@given(st.sampled_from(list(Isolation)), st.sampled_from(["lower", "upper", "title", "_"]))
def test_a_level_may_be_spelled_in_any_case_and_with_underscores(level: Isolation, how: str) -> None:
    spelled = str(level).replace(" ", "_") if how == "_" else getattr(str(level), how)()
    made = Preset(isolation=spelled)
    assert made == Preset(isolation=level)
    assert made.isolation is level


@given(st.text().filter(lambda text: text.upper().replace("_", " ") not in _base.LEVELS))
def test_no_other_text_is_a_level(text: str) -> None:
    with pytest.raises(errors.OptionError):
        Preset(isolation=text)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "wrong", ["", "CHAOS", "SNAPSHOT", "SERIALIZABLE; DROP TABLE users", "SERIALIZABLE\0", 3, b"SERIALIZABLE"]
)
def test_the_error_lists_the_levels(wrong: Any) -> None:
    with pytest.raises(errors.OptionError) as caught:
        Preset(isolation=wrong)
    assert repr(wrong) in str(caught.value)
    for level in Isolation:
        assert str(level) in str(caught.value)


@pytest.mark.parametrize("spelling", ["AUTOCOMMIT", "autocommit", "Autocommit"])
def test_autocommit_is_refused_because_it_is_no_transaction(spelling: Any) -> None:
    with pytest.raises(errors.OptionError, match="not a transaction"):
        Preset(isolation=spelling)


# Preset


def test_a_preset_asks_for_nothing_by_itself() -> None:
    assert all(getattr(Preset(), field.name) is None for field in fields(Preset))


def test_a_preset_is_frozen_and_can_be_a_key() -> None:
    with pytest.raises(FrozenInstanceError):
        READ_ONLY.read_only = False  # type: ignore[misc]
    assert {Preset("SERIALIZABLE"): 1}[SERIALIZABLE] == 1


def test_the_named_presets_are_what_they_are_called() -> None:
    assert Preset("READ COMMITTED") == READ_COMMITTED
    assert Preset("REPEATABLE READ") == REPEATABLE_READ
    assert Preset("SERIALIZABLE") == SERIALIZABLE
    assert Preset(read_only=True) == READ_ONLY
    assert Preset("REPEATABLE READ", True) == SNAPSHOT
    assert Preset("SERIALIZABLE", True, True) == REPORT


@pytest.mark.parametrize("name", ["read_only", "deferrable"])
@pytest.mark.parametrize("wrong", [0, 1, "yes", "", [True]])
def test_a_flag_is_true_false_or_none(name: str, wrong: Any) -> None:
    with pytest.raises(errors.OptionError, match=name):
        Preset(**{name: wrong})


@pytest.mark.parametrize("name", TIMEOUTS)
@pytest.mark.parametrize(
    "wrong", [0, -1, -0.5, 0.0009, 2_147_484, float("inf"), float("nan"), True, "5", "5s", Decimal(5), 5j]
)
def test_a_timeout_is_a_number_of_seconds_that_a_server_can_keep(name: str, wrong: Any) -> None:
    with pytest.raises(errors.OptionError, match=name):
        Preset(**{name: wrong})


@pytest.mark.parametrize("name", TIMEOUTS)
@given(seconds=st.one_of(st.integers(1, 2_147_483), st.floats(0.001, 2_147_483)))
def test_every_other_number_of_seconds_is_taken_as_it_is(name: str, seconds: float) -> None:
    assert getattr(Preset(**{name: seconds}), name) == seconds  # type: ignore[arg-type]


@given(st.sampled_from([None, *Isolation]), st.sampled_from([None, True, False]), st.sampled_from([None, True, False]))
def test_deferrable_needs_serializable_and_read_only(
    isolation: Isolation | None, read_only: bool | None, deferrable: bool | None
) -> None:
    possible = not deferrable or (isolation is Isolation.SERIALIZABLE and read_only is True)
    try:
        made: Any = Preset(isolation, read_only, deferrable)  # type: ignore[call-overload]
    except errors.OptionError as error:
        assert not possible
        assert "deferrable=True" in str(error)
        assert f"read_only={read_only!r}" in str(error)
    else:
        assert possible
        assert (made.isolation, made.read_only, made.deferrable) == (isolation, read_only, deferrable)


def test_replace_changes_what_it_is_told_and_checks_the_whole() -> None:
    assert SNAPSHOT.replace(isolation="SERIALIZABLE") == Preset("SERIALIZABLE", True)
    assert SNAPSHOT.replace(isolation=None) == READ_ONLY
    assert REPORT.replace(deferrable=None, lock_timeout=1) == Preset("SERIALIZABLE", True, lock_timeout=1)
    assert SNAPSHOT.replace() is SNAPSHOT
    with pytest.raises(errors.OptionError, match="deferrable"):
        REPORT.replace(read_only=None)
    with pytest.raises(errors.UnknownOptionError, match="did you mean 'isolation'"):
        REPORT.replace(isolatoin="SERIALIZABLE")
    assert Preset("REPEATABLE READ", True) == SNAPSHOT


# Merging is a law: what is on the right wins, what it leaves open comes from the left.

seconds = st.none() | st.floats(0.001, 100)
presets = st.builds(
    lambda level, read_only, *timeouts: Preset(level, read_only, None, *timeouts),
    st.sampled_from([None, *Isolation]),
    st.sampled_from([None, True, False]),
    seconds,
    seconds,
    seconds,
)


@given(presets, presets)
def test_merging_takes_each_value_from_the_right_where_it_has_one(left: Preset, right: Preset) -> None:
    merged = left | right
    for field in fields(Preset):
        wanted = getattr(right, field.name)
        assert getattr(merged, field.name) == (getattr(left, field.name) if wanted is None else wanted)


@given(presets, presets, presets)
def test_merging_is_associative(one: Preset, two: Preset, three: Preset) -> None:
    assert (one | two) | three == one | (two | three)


@given(presets)
def test_merging_with_nothing_or_with_itself_changes_nothing(preset: Preset) -> None:
    assert preset | Preset() == Preset() | preset == preset | preset == preset


def test_merging_refuses_what_no_server_accepts() -> None:
    with pytest.raises(errors.OptionError, match="deferrable"):
        REPORT | READ_COMMITTED
    assert REPORT | Preset(deferrable=False) | READ_COMMITTED == Preset("READ COMMITTED", True, False)


# Dialects: engines that never connect


class CockroachDialect(PGDialect_psycopg):
    name = "cockroachdb"
    supports_statement_cache = True


class UnknownDialect(default.DefaultDialect):
    name = "nobody_knows"
    supports_statement_cache = True


registry.register("cockroachdb", __name__, "CockroachDialect")
registry.register("nobody_knows", __name__, "UnknownDialect")


def never_connected(dialect: str) -> Engine:
    """Return an engine for a dialect whose driver need not be there: it is given another one, and never used."""
    if dialect in {"postgresql", "cockroachdb"}:
        return create_engine(f"{dialect}+psycopg://" if dialect == "postgresql" else f"{dialect}://")
    if dialect in {"mysql", "mariadb"}:
        return create_engine(f"{dialect}+pymysql://", module=sqlite3)
    return create_engine(f"{dialect}://", module=sqlite3)


# What each dialect gives for each level, and what remains possible at what it gives.
EFFECTIVE: dict[str, dict[str, tuple[str, str]]] = {
    "postgresql": {
        "READ UNCOMMITTED": ("READ COMMITTED", "PMP P4 G-single G2-item G2"),
        "READ COMMITTED": ("READ COMMITTED", "PMP P4 G-single G2-item G2"),
        "REPEATABLE READ": ("REPEATABLE READ", "G2-item G2"),
        "SERIALIZABLE": ("SERIALIZABLE", ""),
    },
    "sqlite": dict.fromkeys(_base.LEVELS, ("SERIALIZABLE", "")),
    "cockroachdb": dict.fromkeys(_base.LEVELS, ("SERIALIZABLE", "")),
    **dict.fromkeys(
        ("mysql", "mariadb"),
        {
            "READ UNCOMMITTED": ("READ UNCOMMITTED", "G1a G1b G1c OTV PMP P4 G-single G2-item G2"),
            "READ COMMITTED": ("READ COMMITTED", "PMP P4 G-single G2-item G2"),
            "REPEATABLE READ": ("REPEATABLE READ", "PMP P4 G-single G2-item G2"),
            "SERIALIZABLE": ("SERIALIZABLE", ""),
        },
    ),
}


@pytest.mark.parametrize("level", list(Isolation))
@pytest.mark.parametrize("dialect", list(EFFECTIVE))
def test_effective_isolation_tells_what_one_gets_and_what_remains_possible(dialect: str, level: Isolation) -> None:
    given_, anomalies = EFFECTIVE[dialect][level]
    effective = effective_isolation(never_connected(dialect), level)
    assert effective == sessionkit.EffectiveIsolation(Isolation(given_), frozenset(anomalies.split()))
    assert effective == effective_isolation(never_connected(dialect), str(level).lower())  # type: ignore[arg-type]


@pytest.mark.parametrize("dialect", list(EFFECTIVE))
def test_what_is_given_is_never_weaker_than_what_was_asked(dialect: str) -> None:
    for level in Isolation:
        assert effective_isolation(never_connected(dialect), level).level.strength >= level.strength


@pytest.mark.parametrize("dialect", list(EFFECTIVE))
def test_a_stronger_level_allows_no_more_than_a_weaker_one(dialect: str) -> None:
    allowed = [effective_isolation(never_connected(dialect), level).anomalies for level in Isolation]
    assert all(stronger <= weaker for weaker, stronger in zip(allowed, allowed[1:], strict=False))


def test_effective_isolation_takes_whatever_has_a_dialect() -> None:
    engine, async_engine = create_engine("sqlite://"), create_async_engine("sqlite+aiosqlite://")
    with orm.Session(engine) as session, engine.connect() as connection:
        for bind in (engine, connection, session, orm.scoped_session(orm.sessionmaker(engine)), async_engine):
            assert effective_isolation(bind, "READ COMMITTED").level is Isolation.SERIALIZABLE
    assert effective_isolation(async_sessionmaker(async_engine)(), "READ COMMITTED").level is Isolation.SERIALIZABLE
    engine.dispose()


@pytest.mark.parametrize("wrong", [None, "sqlite://", 3])
def test_effective_isolation_says_what_it_takes(wrong: Any) -> None:
    with pytest.raises(errors.OptionError, match="takes an engine"):
        effective_isolation(wrong, "SERIALIZABLE")


def test_effective_isolation_refuses_an_unknown_level_and_an_unknown_dialect() -> None:
    with pytest.raises(errors.OptionError, match="CHAOS"):
        effective_isolation(create_engine("sqlite://"), "CHAOS")  # type: ignore[arg-type]
    with pytest.raises(errors.OptionError, match="nobody_knows"):
        effective_isolation(never_connected("nobody_knows"), "SERIALIZABLE")


def test_a_level_that_a_dialect_lacks_with_nothing_stronger_is_refused_before_any_statement() -> None:
    entry = Dialect("weak", levels={"READ UNCOMMITTED": "READ COMMITTED", "READ COMMITTED": "READ COMMITTED"})
    assert entry.given("READ UNCOMMITTED") == "READ COMMITTED"
    with pytest.raises(errors.OptionError, match=r"'SERIALIZABLE'.*weak.*'READ COMMITTED'"):
        entry.given("SERIALIZABLE")


@pytest.fixture
def table() -> Iterator[None]:
    from sessionkit import _dialects

    before = dict(_dialects._TABLE)
    yield
    _dialects._TABLE.clear()
    _dialects._TABLE.update(before)


def test_a_dialect_is_one_entry_in_the_table(table: None) -> None:
    register(Dialect("nobody_knows", anomalies=dict.fromkeys(_base.LEVELS, frozenset({"G2"}))))
    assert effective_isolation(never_connected("nobody_knows"), "SERIALIZABLE").anomalies == {"G2"}
    assert of(never_connected("nobody_knows")) is of_name("nobody_knows")


# What an entry asks of the engine, and what it refuses


@pytest.mark.parametrize("level", list(Isolation))
@pytest.mark.parametrize("dialect", ["mysql", "mariadb", "cockroachdb", "nobody_knows"])
def test_a_level_reaches_the_connection_by_sqlalchemys_option(dialect: str, level: Isolation) -> None:
    asked: dict[str, object] = {}

    class Connection:
        def execution_options(self, **options: object) -> None:
            asked.update(options)

    engine = never_connected(dialect)
    before = of(engine).beginning(engine, Preset(level)).before
    assert before is not None
    before(Connection())
    assert asked == {"isolation_level": "SERIALIZABLE" if dialect == "cockroachdb" else level}
    assert "isolation_level" not in engine.get_execution_options()


@pytest.mark.parametrize("dialect", ["mysql", "mariadb", "cockroachdb", "nobody_knows", "postgresql"])
def test_where_nothing_is_asked_nothing_comes_before_the_begin(dialect: str) -> None:
    engine = never_connected(dialect)
    assert of(engine).beginning(engine, Preset()).before is None


@pytest.mark.parametrize("dialect", ["mysql", "mariadb", "cockroachdb"])
def test_read_only_can_be_asked_for_outside_of_the_matrix_too(dialect: str) -> None:
    engine = never_connected(dialect)
    assert of(engine).beginning(engine, READ_ONLY).before is not None


@pytest.mark.parametrize("option", TIMEOUTS)
@pytest.mark.parametrize("dialect", ["mysql", "mariadb", "cockroachdb", "nobody_knows"])
def test_a_timeout_that_a_dialect_cannot_keep_is_refused(dialect: str, option: str) -> None:
    engine = never_connected(dialect)
    with pytest.raises(errors.OptionError, match=rf"{option}=5.*{dialect}"):
        of(engine).beginning(engine, Preset(**{option: 5}))  # type: ignore[arg-type]


@pytest.mark.parametrize("dialect", ["mysql", "mariadb", "cockroachdb", "nobody_knows"])
def test_so_is_deferrable(dialect: str) -> None:
    engine = never_connected(dialect)
    with pytest.raises(errors.OptionError, match=rf"(deferrable|read_only)=True.*{dialect}"):
        of(engine).beginning(engine, REPORT)


def test_read_only_on_a_dialect_without_an_entry_is_refused() -> None:
    engine = never_connected("nobody_knows")
    with pytest.raises(errors.OptionError, match=r"read_only=True.*nobody_knows"):
        of(engine).beginning(engine, READ_ONLY)


def test_a_scope_refuses_what_the_dialect_cannot_keep_before_it_connects() -> None:
    Session = sessionkit.sessionmaker(never_connected("mysql"))
    with pytest.raises(errors.OptionError, match=r"lock_timeout=1.*mysql"), Session.scope(lock_timeout=1):
        pass


@pytest.mark.parametrize(
    ("dialect", "runs"),
    [
        ("postgresql", "READ COMMITTED"),
        ("sqlite", "SERIALIZABLE"),
        ("mysql", "REPEATABLE READ"),
        ("mariadb", "REPEATABLE READ"),
        ("cockroachdb", "SERIALIZABLE"),
        ("nobody_knows", "READ COMMITTED"),
    ],
)
def test_where_nothing_was_asked_the_dialects_default_runs(dialect: str, runs: str) -> None:
    engine = never_connected(dialect)
    assert of(engine).running_level(engine) == runs


def test_where_the_engine_asks_for_a_level_that_one_runs() -> None:
    for asked in ("REPEATABLE READ", "repeatable_read"):
        engine = create_engine("postgresql+psycopg://", isolation_level=asked)
        assert of(engine).running_level(engine) == "REPEATABLE READ"
    derived = create_engine("postgresql+psycopg://").execution_options(isolation_level="SERIALIZABLE")
    assert of(derived).running_level(derived) == "SERIALIZABLE"
