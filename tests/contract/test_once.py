"""`once=`: a unit that happens one time, and gives its answer again."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import func, insert, select, text
from sqlalchemy.exc import DBAPIError

from sessionkit import Retry, commits, errors, on_commit, set_rollback_only
from sessionkit import sqlite as sqlite_
from tests.contract.lost import create_markers, somebody_waits_for_a_lock
from tests.contract.once import Payments, keys, paid
from tests.contract.tenants import ROLE, TENANT, Note, create_notes
from tests.support.models import Account, User

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncSession

    from tests.support.doors import Door

POSTGRESQL = pytest.mark.doors(backend="postgresql")
LEVELS = pytest.mark.parametrize("isolation", [None, "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])


@pytest.fixture
def unit() -> Payments:
    return Payments()


# -- one after the other --------------------------------------------------------------------------------------------


@LEVELS
async def test_the_second_call_gets_the_answer_of_the_first_and_its_body_does_not_run(
    doors: Door, unit: Payments, isolation: Any
) -> None:
    await create_markers(doors)
    pay = unit.unit(doors, isolation=isolation)
    first = await pay(7)
    assert await pay(7) == await pay(order=7, amount=5) == first == {"order": 7, "id": first["id"]}
    assert (await pay(8))["order"] == 8
    assert (unit.runs, unit.hooks, await paid(doors)) == ([7, 8], [7, 8], 2)
    assert await keys(doors) == [("pay:7", "U"), ("pay:8", "U")]


async def test_it_costs_one_statement_more_than_a_marker_and_a_replay_is_one_statement(
    doors: Door, unit: Payments
) -> None:
    await create_markers(doors)
    pay = unit.unit(doors)

    def of_the_key(sql: list[str]) -> list[str]:
        return [line for line in sql if "sessionkit_" in line]

    with doors.statements() as sql:
        await pay(7)
    assert [line.split()[0] for line in sql][-1] == "COMMIT"
    claim, result = of_the_key(sql)
    assert (sql.index(claim), result.split()[0]) == (1, "UPDATE")
    with doors.statements() as sql:
        await pay(7)
    assert len(sql) == 3
    assert of_the_key(sql) == [claim]


async def test_a_failed_unit_leaves_no_key_and_the_next_call_runs(doors: Door, unit: Payments) -> None:
    await create_markers(doors)
    fails = [True]

    async def pay(session: AsyncSession, order: int) -> Any:
        result = await unit.pay(session, order)
        if fails.pop():
            raise ZeroDivisionError
        return result

    run = doors.decorate(pay, once="pay")
    with pytest.raises(ZeroDivisionError):
        await run(7)
    assert await keys(doors) == []
    fails.append(False)
    assert (await run(7))["order"] == 7
    assert (unit.hooks, await paid(doors), await keys(doors)) == ([7], 1, [("pay", "U")])


async def test_a_retried_unit_claims_its_key_in_each_attempt_and_answers_once(doors: Door, unit: Payments) -> None:
    await create_markers(doors)
    failures = [errors.VersionConflict([]), errors.VersionConflict([])]

    async def pay(session: AsyncSession, order: int) -> Any:
        result = await unit.pay(session, order)
        if failures:
            raise failures.pop()
        return result

    run = doors.decorate(pay, once=lambda order: f"pay:{order}", retry=Retry(5, wait=0))
    assert await run(7) == await run(7)
    assert (len(unit.runs), unit.hooks, await paid(doors)) == (3, [7], 1)


async def test_a_unit_that_asks_for_a_rollback_returns_and_keeps_its_key_free(doors: Door) -> None:
    await create_markers(doors)
    ran: list[int] = []

    async def pay(session: AsyncSession) -> object:
        ran.append(1)
        session.add(Account())
        doors.call(set_rollback_only, session)
        return {"never": {"stored"}}

    run = doors.decorate(pay, once="pay")
    for _ in range(2):
        assert await run() == {"never": {"stored"}}
    assert (len(ran), await keys(doors), await paid(doors)) == (2, [], 0)


async def test_a_unit_whose_hook_has_failed_is_committed_and_is_not_run_again(doors: Door) -> None:
    await create_markers(doors)

    async def pay(session: AsyncSession) -> int:
        session.add(Account())

        def fail() -> None:
            raise ZeroDivisionError

        on_commit(fail)
        return 7

    run = doors.decorate(pay, once="pay")
    with pytest.raises(errors.HookError):
        await run()
    assert await run() == 7
    assert await paid(doors) == 1


# -- at the same time -----------------------------------------------------------------------------------------------


@LEVELS
@pytest.mark.parametrize("fails", [False, True], ids=["commits", "rolls back"])
async def test_the_second_waits_for_the_first(doors: Door, unit: Payments, isolation: Any, fails: bool) -> None:
    """It gets the answer of the first; where that is rolled back, it runs itself. Without any retry."""
    await create_markers(doors)
    if doors.backend == "sqlite":
        sqlite_.configure(doors.engine, busy_timeout=30)
    claimed, waits = doors.event(), doors.event()
    answers: list[Any] = []

    async def pay(session: AsyncSession, order: int) -> Any:
        result = await unit.pay(session, order)
        if len(unit.runs) == 1:
            claimed.set()
            await waits.wait()
            if fails:
                raise ZeroDivisionError
        return result

    run = doors.decorate(pay, once=lambda order: f"pay:{order}", isolation=isolation)

    async def first() -> None:
        try:
            answers.append(await run(7))
        except ZeroDivisionError:
            assert fails

    async def second() -> None:
        await claimed.wait()
        answers.append(await run(7))

    async def watch() -> None:
        await claimed.wait()
        if doors.backend == "postgresql":
            await somebody_waits_for_a_lock(doors)
        waits.set()

    await doors.together(first, second, watch)
    assert len(unit.runs) == 1 + fails
    assert len({repr(answer) for answer in answers}) == 1
    assert (unit.hooks, await paid(doors), await keys(doors)) == ([7], 1, [("pay:7", "U")])


@LEVELS
async def test_many_at_once_have_one_effect_and_equal_answers(doors: Door, unit: Payments, isolation: Any) -> None:
    await create_markers(doors)
    if doors.backend == "sqlite":
        sqlite_.configure(doors.engine, busy_timeout=30)
    barrier = doors.barrier(4)
    pay = unit.unit(doors, isolation=isolation, retry=Retry(20, wait=0.001))

    async def body() -> list[Any]:
        answers = []
        for order in range(6):
            await barrier.wait()
            answers.append(await pay(order))
        return answers

    one, *others = await doors.together(*[body] * 4)
    assert all(other == one for other in others)
    assert await paid(doors) == 6
    assert sorted(unit.hooks) == list(range(6))


@POSTGRESQL
@pytest.mark.parametrize("bound", ["lock_timeout", "deadline"])
async def test_a_wait_that_takes_too_long_ends_in_not_locked(doors: Door, unit: Payments, bound: str) -> None:
    await create_markers(doors)
    options: dict[str, Any] = {"lock_timeout": 0.03} if bound == "lock_timeout" else {"retry": Retry(timeout=1)}
    pay = unit.unit(doors, **options)

    async def late() -> None:
        with pytest.raises(errors.NotLocked, match="pay:7") as caught:
            await pay(7)
        assert isinstance(caught.value, DBAPIError)
        assert errors.classify(caught.value).kind == "lock_not_available"
        assert errors.outcome_of(caught.value) == "rolled back"

    async def first(session: AsyncSession, order: int) -> None:
        await doors.together(late)

    await doors.decorate(first, once=lambda order: f"pay:{order}")(7)
    assert unit.runs == []


@POSTGRESQL
async def test_a_wait_that_was_too_long_can_be_retried(doors: Door, unit: Payments) -> None:
    await create_markers(doors)
    free, holds = doors.event(), doors.event()
    retry = Retry(500, wait=0.01, also=("lock_not_available",), before_retry=lambda _: free.set())
    pay = unit.unit(doors, lock_timeout=0.02, retry=retry)

    async def slow(session: AsyncSession, order: int, amount: int = 5) -> int:
        holds.set()
        await free.wait()
        return 1

    async def second() -> None:
        await holds.wait()
        assert await pay(7) == 1

    run = doors.decorate(slow, once=lambda order: f"pay:{order}")
    await doors.together(lambda: run(7), second)
    assert unit.runs == []


# -- results --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "result",
    [None, True, 0, -0.5, "", "text \x00 and \ud800 and ü", [], [1, [2.5, None]], {"a": {"b": [False]}}, "x" * 300_000],
    ids=repr,
)
async def test_what_json_can_keep_comes_back_as_it_was(doors: Door, result: Any) -> None:
    await create_markers(doors)

    async def body(session: AsyncSession) -> Any:
        session.add(Account())
        return result

    run = doors.decorate(body, once="key")
    for _ in range(2):
        again = await run()
        assert again == result
        assert type(again) is type(result)
    assert await paid(doors) == 1


@pytest.mark.parametrize(
    "result",
    [
        (1, 2),
        {1: "a"},
        [{"a": (1,)}],
        {1, 2},
        b"bytes",
        float("nan"),
        User(name="ann"),
        errors.OnceResult,
        pytest.param([[]], id="circle"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_what_json_cannot_keep_is_an_error_and_nothing_is_committed(doors: Door, result: Any) -> None:
    await create_markers(doors)
    if result == [[]]:
        result[0].append(result)

    async def body(session: AsyncSession) -> Any:
        session.add(Account())
        return result

    with pytest.raises(errors.OnceResult, match="codec=") as caught:
        await doors.decorate(body, once="key")()
    assert isinstance(caught.value, TypeError)
    assert errors.outcome_of(caught.value) == "rolled back"
    assert (await keys(doors), await paid(doors)) == ([], 0)


@pytest.mark.parametrize("codec", [(pickle.dumps, pickle.loads), (repr, eval), (lambda value: str(value[0]), int)])
async def test_a_codec_keeps_what_json_cannot(doors: Door, codec: Any) -> None:
    await create_markers(doors)
    results = [(1, 2), (3, 4)]

    async def body(session: AsyncSession) -> Any:
        return results.pop()

    run = doors.decorate(body, once="key", codec=codec)
    assert await run() == (3, 4)
    assert await run() == codec[1](codec[0]((3, 4)))
    assert results == [(1, 2)]


async def test_a_codec_that_gives_something_else_or_fails_commits_nothing(doors: Door) -> None:
    await create_markers(doors)

    async def body(session: AsyncSession) -> Any:
        session.add(Account())

    def fail(_: Any) -> Any:
        raise ZeroDivisionError

    with pytest.raises(errors.OnceResult, match="returned a int"):
        await doors.decorate(body, once="key", codec=(lambda _: 7, str))()
    with pytest.raises(ZeroDivisionError):
        await doors.decorate(body, once="key", codec=(fail, str))()
    assert (await keys(doors), await paid(doors)) == ([], 0)


# -- keys and fingerprints ------------------------------------------------------------------------------------------


async def test_a_key_with_other_arguments_is_an_error_that_names_both(doors: Door, unit: Payments) -> None:
    await create_markers(doors)
    pay = unit.unit(doors)
    await pay(7)
    with pytest.raises(errors.OnceMismatch, match="'pay:7'.*other arguments") as caught:
        await pay(7, amount=6)
    assert caught.value.key == "pay:7"
    ((stored,),) = await doors.rows("SELECT fingerprint FROM sessionkit_once")
    assert repr(stored) in str(caught.value)
    assert str(caught.value).count("'") >= 6
    assert (unit.runs, await paid(doors)) == ([7], 1)


async def test_the_fingerprint_is_of_the_values_in_the_order_of_the_signature(doors: Door) -> None:
    await create_markers(doors)
    ran: list[Any] = []

    async def body(session: AsyncSession, a: Any, *rest: Any, b: Any = 2, **more: Any) -> None:
        ran.append((a, rest, b, more))

    run = doors.decorate(body, once="key")
    await run(1, 3, x={"one": 1, "two": 2}, y=5)
    await run(1, 3, b=2, y=5, x={"two": 2, "one": 1})
    assert len(ran) == 1
    for args, kwargs in [
        ((1, 3), {}),
        ((1,), {"x": 1}),
        ((1, 3), {"x": {"one": 1, "two": 2}, "z": 5}),
        ((1, 3, 4), {}),
    ]:
        with pytest.raises(errors.OnceMismatch):
            await run(*args, **kwargs)


@pytest.mark.parametrize(
    "fingerprint", ["", "always", lambda: "always", lambda order: f"{order}", lambda **all_: str(all_)]
)
async def test_a_fingerprint_of_ones_own_is_a_string_or_a_function(doors: Door, fingerprint: Any) -> None:
    await create_markers(doors)
    ran: list[int] = []

    async def body(session: AsyncSession, order: object, *, note: str = "") -> None:
        ran.append(1)

    run = doors.decorate(body, once="key", fingerprint=fingerprint)
    await run({7})
    await run({7})
    assert ran == [1]
    if fingerprint not in ("", "always") and fingerprint.__code__.co_argcount + fingerprint.__code__.co_flags & 8:
        with pytest.raises(errors.OnceMismatch):
            await run({8})


async def test_arguments_that_json_cannot_say_are_refused_and_pointed_to_fingerprint(doors: Door) -> None:
    async def body(session: AsyncSession, order: object) -> None:
        raise AssertionError

    run = doors.decorate(body, once="key")
    for wrong in (object(), {1}, b"bytes", float("nan"), {(1, 2): 3}):
        with pytest.raises(errors.OptionError, match="fingerprint="), doors.statements() as sql:
            await run(wrong)
        assert sql == []
    for given in (7, b"bytes", "nul \0"):
        with pytest.raises(errors.OptionError, match="fingerprint="):
            doors.decorate(body, once="key", fingerprint=given)
        with pytest.raises(errors.OptionError, match="fingerprint="):
            await doors.decorate(body, once="key", fingerprint=lambda given=given: given)(1)


async def test_what_is_no_key_is_refused(doors: Door) -> None:
    async def body(session: AsyncSession) -> None:
        raise AssertionError

    for wrong in ("", "x" * 201, "nul \0", "\ud800", 7, b"key", ("a",), True):
        with pytest.raises(errors.OptionError, match="a key is a string of 1 to 200"):
            doors.decorate(body, once=wrong)
        with pytest.raises(errors.OptionError, match="a key is a string of 1 to 200"), doors.statements() as sql:
            await doors.decorate(body, once=lambda wrong=wrong: wrong)()
        assert sql == []
    with pytest.raises(errors.OptionError, match="a key is a string of 1 to 200"):
        await doors.decorate(body, once=lambda: None)()
    with pytest.raises(errors.OptionError, match="the call has no such argument"):
        await doors.decorate(body, once=lambda nothing: "key")()

    async def key() -> str:
        raise AssertionError

    with pytest.raises(errors.OptionError, match="async"):
        doors.decorate(body, once=key)


async def test_a_key_may_have_200_characters_of_any_alphabet(doors: Door) -> None:
    await create_markers(doors)

    async def body(session: AsyncSession) -> int:
        return 1

    for key in ("ü" * 200, "a b", "A", "a", "a ", "\N{GRINNING FACE}" * 200):
        assert await doors.decorate(body, once=key)() == 1
    assert len(await keys(doors)) == 6


async def test_options_that_do_not_go_with_a_key_are_refused(doors: Door) -> None:
    refused: list[dict[str, Any]] = [
        {"once": "key", "read_only": True},
        {"once": "key", "verify_commit": lambda session: True},
        {"once": "key", "no_rollback_for": LookupError},
        {"once": "key", "once_ttl": 0},
        {"once": "key", "once_ttl": -1.0},
        {"once": "key", "once_ttl": True},
        {"once": "key", "once_ttl": "1"},
        {"once": "key", "once_ttl": float("inf")},
        {"once": "key", "codec": pickle},
        {"once": "key", "codec": (pickle.dumps,)},
        {"fingerprint": "x"},
        {"codec": (repr, eval)},
        {"once_ttl": 5},
    ]

    async def body(session: AsyncSession) -> None: ...

    for options in refused:
        with pytest.raises(errors.OptionError):
            doors.decorate(body, **options)
    for option in ({"once": "key"}, {"once": None}, {"codec": (repr, eval)}, {"once_ttl": 5}, {"fingerprint": "x"}):
        with pytest.raises(errors.OptionError, match="belongs to one function"):
            doors.factory(**option)


async def test_a_plain_with_and_attempts_are_refused_and_shown_run(doors: Door) -> None:
    for options in ({"once": "key"}, {"once": lambda: "key", "retry": 3}):
        with pytest.raises(errors.OptionError, match=r"run\(fn"):
            async with doors.scope(**options):
                raise AssertionError
        with pytest.raises(errors.OptionError, match=r"run\(fn"):
            async for _ in doors.attempts(**options):
                raise AssertionError


async def test_run_takes_a_key_of_its_arguments(doors: Door, unit: Payments) -> None:
    await create_markers(doors)
    scope = doors.Session.scope(once=lambda order: f"pay:{order}", retry=2)

    async def pay(session: AsyncSession, order: int) -> Any:
        return await unit.pay(session, order)

    run = doors._called(scope.run)
    fn = doors._coloured(pay)
    assert await run(fn, 7) == await run(fn, order=7)
    assert unit.runs == [7]


async def test_without_the_table_the_error_says_how_to_make_it_and_the_body_does_not_run(
    doors: Door, unit: Payments
) -> None:
    pay = unit.unit(doors)
    for _ in range(2):
        with pytest.raises(errors.OptionError, match=r"commits\.create_table\(engine\)"):
            await pay(7)
    async with doors.scope() as session:
        session.add(User(name="ann"))
        with pytest.raises(errors.OptionError, match=r"commits\.create_table\(engine\)"):
            await pay(7)
        session.add(User(name="bob"))
    assert await doors.scalar(select(func.count()).select_from(User)) == 2
    assert unit.runs == []
    await create_markers(doors)
    assert (await pay(7))["order"] == 7


# -- time -----------------------------------------------------------------------------------------------------------


async def test_a_key_that_is_over_its_time_is_taken_over_and_pruned(doors: Door, unit: Payments) -> None:
    await create_markers(doors)
    pay = unit.unit(doors, once_ttl=3600)
    first = await pay(7)
    await pay(8)
    await expire(doors, "pay:7")
    second = await pay(7)
    assert second != first
    assert await pay(7) == second
    assert unit.runs == [7, 8, 7]
    await pay(9)
    await expire(doors, "pay:8")
    prune = doors.twin(commits.prune, commits.async_prune)
    assert await prune(doors.engine) == 1
    assert await prune(doors.engine, older_than=0) == 0
    assert await keys(doors) == [("pay:7", "U"), ("pay:9", "U")]


@LEVELS
async def test_a_key_over_its_time_is_taken_over_by_one(doors: Door, unit: Payments, isolation: Any) -> None:
    await create_markers(doors)
    if doors.backend == "sqlite":
        sqlite_.configure(doors.engine, busy_timeout=30)
    pay = unit.unit(doors, isolation=isolation, retry=Retry(20, wait=0.001))
    await pay(7)
    for _ in range(4):
        await expire(doors, "pay:7")
        barrier = doors.barrier(4)

        async def body(barrier: Any = barrier) -> Any:
            await barrier.wait()
            return await pay(7)

        answers = await doors.together(*[body] * 4)
        assert len({repr(answer) for answer in answers}) == 1
    assert (await paid(doors), len(unit.hooks)) == (5, 5)


async def expire(doors: Door, key: str) -> None:
    await doors.write(
        text("UPDATE sessionkit_once SET expires_at = :old WHERE key = :key").bindparams(
            old="2001-01-01 00:00:00", key=key
        )
        if doors.backend == "sqlite"
        else text("UPDATE sessionkit_once SET expires_at = now() - interval '1 s' WHERE key = :key").bindparams(key=key)
    )


async def test_a_key_is_kept_for_seven_days(doors: Door, unit: Payments) -> None:
    await create_markers(doors)
    await unit.unit(doors)(7)
    await unit.unit(doors, once_ttl=60.5)(8)
    if doors.backend == "postgresql":
        seconds = "extract(epoch FROM expires_at - created_at)"
    else:
        seconds = "(julianday(expires_at) - julianday(created_at)) * 86400"
    week, minute = [row[0] for row in await doors.rows(f"SELECT {seconds} FROM sessionkit_once ORDER BY key")]
    assert abs(float(week) - 7 * 86_400) < 10
    assert 55 < float(minute) < 70


# -- joining --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("propagation", ["join", "savepoint"])
async def test_a_joined_key_shares_the_fate_of_the_outer_unit(doors: Door, unit: Payments, propagation: Any) -> None:
    await create_markers(doors)
    pay = unit.unit(doors, propagation=propagation)
    with pytest.raises(ZeroDivisionError):
        async with doors.scope():
            await pay(7)
            raise ZeroDivisionError
    assert await keys(doors) == []
    async with doors.scope() as session:
        first = await pay(7)
        assert await pay(7) == first  # answered in the same unit
        session.add(User(name="ann"))
    assert await pay(7) == first
    async with doors.scope():
        assert await pay(7) == first
        with pytest.raises(errors.OnceMismatch):
            await pay(7, amount=6)
    assert (unit.runs, unit.hooks, await paid(doors)) == ([7, 7], [7], 1)


async def test_a_key_in_a_savepoint_goes_with_it(doors: Door, unit: Payments) -> None:
    await create_markers(doors)
    fails = [True]

    async def pay(session: AsyncSession, order: int) -> Any:
        result = await unit.pay(session, order)
        if fails and fails.pop():
            raise ZeroDivisionError
        return result

    run = doors.decorate(pay, once=lambda order: f"pay:{order}", propagation="savepoint")
    async with doors.scope():
        with pytest.raises(ZeroDivisionError):
            await run(7)
        first = await run(7)
    assert await run(7) == first
    assert (len(unit.runs), unit.hooks, await paid(doors)) == (2, [7], 1)


async def test_a_joined_result_that_cannot_be_stored_keeps_the_outer_from_committing(doors: Door) -> None:
    await create_markers(doors)

    async def body(session: AsyncSession) -> Any:
        session.add(Account())
        return {1}

    with pytest.raises(errors.UnexpectedRollback):
        async with doors.scope():
            with pytest.raises(errors.OnceResult):
                await doors.decorate(body, once="key")()
    assert (await keys(doors), await paid(doors)) == ([], 0)


async def test_a_session_that_is_passed_in_joins_its_scope_or_is_refused(doors: Door, unit: Payments) -> None:
    await create_markers(doors)

    async def pay(session: AsyncSession, order: int) -> Any:
        return await unit.pay(session, order)

    run = doors.decorate(pay, once=lambda order: f"pay:{order}", form="keyword")
    async with doors.scope() as session:
        first = await run(7, session=session)
        assert await run(7, session=session) == first
    assert await run(7) == first
    async with doors.session(doors.plain_factory()) as own:
        with pytest.raises(errors.OptionError, match="belongs to no scope"):
            await run(7, session=own)
    assert unit.runs == [7]


async def test_a_read_only_outer_unit_is_refused_before_anything_is_sent(doors: Door, unit: Payments) -> None:
    await create_markers(doors)
    pay = unit.unit(doors)
    async with doors.scope(read_only=True) as session:
        await session.execute(text("SELECT 1"))
        with pytest.raises(errors.OptionError, match="read-only"), doors.statements() as sql:
            await pay(7)
        assert sql == []
    assert unit.runs == []


async def test_a_unit_that_would_wait_for_itself_is_refused_at_once(doors: Door) -> None:
    await create_markers(doors)
    inner: list[Callable[[], Any]] = []

    async def body(session: AsyncSession) -> int:
        session.add(Account())
        with pytest.raises(errors.ScopeError, match="would wait for itself|cannot answer itself"):
            await inner.pop()()
        return 1

    for options in ({"propagation": "new"}, {"propagation": "savepoint"}):
        if options["propagation"] == "new" and doors.backend == "sqlite":
            continue  # a transaction of its own inside a writer is refused there anyhow
        inner.append(doors.decorate(body, once="key", **options))
        await doors.write("DELETE FROM sessionkit_once")
        assert await doors.decorate(body, once="key")() == 1
    assert await paid(doors) == (1 if doors.backend == "sqlite" else 2)


@POSTGRESQL
async def test_a_joined_wait_that_was_too_long_leaves_the_outer_unit_whole(doors: Door, unit: Payments) -> None:
    await create_markers(doors)
    pay = unit.unit(doors)

    async def late() -> None:
        async with doors.scope(lock_timeout=0.03) as session:
            session.add(User(name="ann"))
            with pytest.raises(errors.NotLocked):
                await pay(7)
            session.add(User(name="bob"))

    async def first(session: AsyncSession, order: int, amount: int = 5) -> None:
        await doors.together(late)

    await doors.decorate(first, once=lambda order: f"pay:{order}")(7)
    assert await doors.scalar(select(func.count()).select_from(User)) == 2


@POSTGRESQL
async def test_above_read_committed_a_joined_claim_raises_and_the_outer_unit_is_retried(doors: Door) -> None:
    await create_markers(doors)
    ran: list[str] = []

    async def inner(session: AsyncSession) -> int:
        session.add(Account())
        return 7

    pay = doors.decorate(inner, once="key")

    async def outer(session: AsyncSession) -> int:
        ran.append("outer")
        await session.execute(select(Account))  # its snapshot
        if len(ran) == 1:
            await doors.together(pay)
        return int(await pay())

    assert await doors.decorate(outer, isolation="REPEATABLE READ", retry=Retry(3, wait=0))() == 7
    assert (ran, await paid(doors)) == (["outer", "outer"], 1)


# -- with other features --------------------------------------------------------------------------------------------


async def test_commits_by_hand_inside_leave_the_key_alone(doors: Door) -> None:
    await create_markers(doors)
    ran: list[int] = []

    async def body(session: AsyncSession) -> int:
        ran.append(1)
        await session.rollback()
        session.add(Account())
        with pytest.warns(errors.ManualCommit) if len(ran) == 1 else pytest.raises(AssertionError):
            await session.commit()
        session.add(Account())
        await session.rollback()
        return 7

    run = doors.decorate(body, once="key", manual_commit="savepoint")
    assert await run() == await run() == 7
    assert (ran, await paid(doors)) == ([1], 1)


async def test_a_joined_body_that_rolls_back_behind_its_key_is_told(doors: Door) -> None:
    await create_markers(doors)

    async def body(session: AsyncSession) -> int:
        await session.rollback()
        session.add(Account())
        return 7

    with pytest.raises(errors.ScopeError, match="not there any more"):
        async with doors.scope(manual_commit="savepoint"):
            await doors.decorate(body, once="key")()
    assert await paid(doors) == 0


@POSTGRESQL
async def test_a_unit_of_several_databases_needs_two_phases(doors: Door) -> None:
    await create_markers(doors)
    other = doors.other_engine()
    await create_markers(doors, other)
    ran: list[int] = []

    async def body(session: AsyncSession) -> int:
        ran.append(1)
        session.add(User(name=f"run {len(ran)}"))
        session.add(Account())
        return 7

    binds = {User: doors.engine, Account: other}
    two = doors.factory(binds=binds, twophase=True)
    run = doors.decorate(body, two, once="two")
    assert await run() == await run() == 7
    run = doors.decorate(body, doors.factory(binds=binds), once="key")
    with pytest.raises(errors.ScopeError, match="do not commit as one"):
        await run()
    assert await keys(doors) == [("two", "U")]
    assert len(ran) == 2


async def test_a_session_bound_to_a_connection_has_its_key_in_that_transaction(doors: Door, unit: Payments) -> None:
    await create_markers(doors)
    async with doors.connect() as connection:
        transaction = await connection.begin()
        if doors.backend == "sqlite":
            await connection.execute(insert(User).values(name="ann"))
        factory = doors.factory(doors.raw(connection))
        pay = unit.unit(doors, factory)
        first = await pay(7)
        assert await pay(7) == first
        await transaction.rollback()
    assert (await keys(doors), unit.runs) == ([], [7])


@POSTGRESQL
async def test_a_unit_with_a_role_and_settings_claims_its_key_as_that_role(doors: Door) -> None:
    await create_markers(doors)
    await create_notes(doors)
    ran: list[int] = []

    async def body(session: AsyncSession) -> str:
        ran.append(1)
        session.add(Note(tenant="a", body="one"))
        return str(await session.scalar(text("SELECT current_user")))

    run = doors.decorate(body, once="key", role=ROLE, settings={TENANT: "a"})
    with pytest.raises(DBAPIError) as caught:
        await run()
    assert errors.classify(caught.value).code == "42501"
    assert ran == []
    await doors.write(f"GRANT SELECT, INSERT, UPDATE ON sessionkit_once TO {ROLE}")
    await doors.write(f"GRANT USAGE ON SEQUENCE notes_id_seq TO {ROLE}")
    assert [await run(), await run()] == [ROLE, ROLE]
    assert (ran, await keys(doors)) == ([1], [("key", "U")])


@POSTGRESQL
async def test_a_joined_key_in_a_transaction_of_its_own_inside_the_one_that_holds_it_is_refused_at_once(
    doors: Door,
) -> None:
    await create_markers(doors)
    factory = doors.factory()

    async def inner(session: AsyncSession) -> int:
        session.add(Account())
        return 1

    again = doors.decorate(inner, factory, once="key")

    async def outer(session: AsyncSession) -> int:
        async with doors.scope(factory, propagation="new"):
            with pytest.raises(errors.ScopeError, match="would wait for itself"):
                await again()
        return 2

    assert await doors.decorate(outer, factory, once="key")() == 2
    assert await again() == 2
