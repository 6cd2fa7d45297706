"""Real servers under load, with a pool that is much too small: every 2xx is in the database, and nothing else is.

Two hundred clients at once ask for work that succeeds, that fails in every way there is, that loses its connection, and
for increments that get into each other's way. Some go away before they have their answer.
"""

# Without `from __future__ import annotations`: FastAPI reads the annotations of endpoints.

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, HTTPException, Response
from flask import Flask, abort
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from sessionkit import SERIALIZABLE, async_sessionmaker, current_session, sessionmaker
from sessionkit.integrations.fastapi import SessionDepends, install
from sessionkit.integrations.flask import SessionKit
from sessionkit.retry import Retry
from tests.integrations.servers import ask, ask_and_go, uvicorn_serving, waitress_serving
from tests.support.doors import Door
from tests.support.models import Account, Pledge, User

pytestmark = pytest.mark.doors("postgresql-sync")

POOL: dict[str, Any] = {"pool_size": 5, "max_overflow": 0, "pool_timeout": 60}
RETRY = Retry(50, wait=0.005, wait_max=0.05)
CLIENTS = 200
KINDS = ["good", "increment", "refused", "raised", "pledged", "killed", "returned", "good", "increment", "twice"]
KILL = text("SELECT pg_terminate_backend(pg_backend_pid())")


async def load(port: int) -> tuple[dict[str, int], Counter[str]]:
    """Have all clients ask at once; return the statuses by name, and how often each kind had which."""
    kinds = [KINDS[number % len(KINDS)] for number in range(CLIENTS)]

    async def one(number: int, kind: str) -> tuple[str, int]:
        status, _, _ = await ask(port, "PUT" if kind == "increment" else "POST", f"/{kind}/user{number}")
        return f"user{number}", status

    asked = [one(number, kind) for number, kind in enumerate(kinds)]
    gone = [ask_and_go(port, "POST", f"/good/gone{number}") for number in range(20)]
    answers, _ = await asyncio.gather(asyncio.gather(*asked), asyncio.gather(*gone))
    tally = Counter(f"{kind} {status}" for kind, (_, status) in zip(kinds, answers, strict=True))
    return dict(answers), tally


async def check(doors: Door, statuses: dict[str, int], tally: Counter[str]) -> None:
    found = {name for (name,) in await doors.rows("SELECT name FROM users")}
    told = {name for name, status in statuses.items() if 200 <= status < 300}
    assert {name for name in found if not name.startswith("gone")} == told
    assert await doors.rows("SELECT id FROM pledges") == []
    per_kind = CLIENTS // len(KINDS)
    assert tally["good 200"] == 2 * per_kind
    assert tally["increment 200"] == 2 * per_kind  # each of them was retried until it had its turn
    assert await doors.scalar("SELECT balance FROM accounts") == 2 * per_kind
    assert tally["refused 403"] == tally["returned 409"] == tally["raised 500"] == tally["pledged 500"] == per_kind
    assert tally["killed 503"] == per_kind
    assert tally["twice 500"] == per_kind


async def test_fastapi_with_async_sessions_on_uvicorn(doors: Door) -> None:
    engine = create_async_engine(doors.database.url("asyncpg"), **POOL)
    Async = async_sessionmaker(engine)
    SessionDep = Annotated[AsyncSession, SessionDepends(Async)]
    IncrementDep = Annotated[AsyncSession, SessionDepends(Async, preset=SERIALIZABLE, retry=RETRY)]

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> Any:
        yield
        left.append(engine.pool.checkedout())  # type: ignore[attr-defined]
        await engine.dispose()

    app = FastAPI(lifespan=lifespan)
    install(app)
    left: list[int] = []

    @app.put("/increment/{name}")
    async def increment(name: str, session: IncrementDep) -> None:
        account = await session.get_one(Account, 1)
        session.add(User(name=name))
        account.balance += 1

    @app.post("/{kind}/{name}")
    async def work(kind: str, name: str, session: SessionDep) -> Any:
        session.add(User(name=name))
        await session.flush()
        match kind:
            case "refused":
                raise HTTPException(403)
            case "raised":
                raise ZeroDivisionError
            case "pledged":
                session.add(Pledge(account_id=99))
            case "killed":
                await session.execute(KILL)
            case "returned":
                return Response(status_code=409)
            case "twice":
                session.add(User(name=name))
        return None

    await doors.write("INSERT INTO accounts (id, owner, balance) VALUES (1, 'all', 0)")
    with uvicorn_serving(app) as port:
        statuses, tally = asyncio.run(load(port))
    await check(doors, statuses, tally)
    assert left == [0]


async def test_fastapi_with_sync_sessions_on_uvicorn(doors: Door) -> None:
    """Threads that wait for connections, and requests with connections that wait for threads: none waits for ever."""
    engine = doors.make_engine(**POOL)
    factory = sessionmaker(engine)
    SessionDep = Annotated[Session, SessionDepends(factory)]
    IncrementDep = Annotated[Session, SessionDepends(factory, preset=SERIALIZABLE, retry=RETRY)]
    app = FastAPI()
    install(app)

    def seen_first(session: SessionDep) -> None:
        session.execute(text("SELECT 1"))  # it holds a connection from here on, and gives its thread back

    @app.put("/increment/{name}")
    def increment(name: str, session: IncrementDep) -> None:
        account = session.get_one(Account, 1)
        session.add(User(name=name))
        account.balance += 1

    @app.post("/{kind}/{name}")
    def work(kind: str, name: str, session: SessionDep, first: Annotated[None, Depends(seen_first)]) -> Any:
        assert current_session(factory) is session
        session.add(User(name=name))
        if kind != "good":  # which waits for a connection when it commits, while others who have one want to commit
            session.flush()
        match kind:
            case "refused":
                raise HTTPException(403)
            case "raised":
                raise ZeroDivisionError
            case "pledged":
                session.add(Pledge(account_id=99))
            case "killed":
                session.execute(KILL)
            case "returned":
                return Response(status_code=409)
            case "twice":
                session.add(User(name=name))
        return None

    await doors.write("INSERT INTO accounts (id, owner, balance) VALUES (1, 'all', 0)")
    with uvicorn_serving(app) as port:
        statuses, tally = asyncio.run(load(port))
    await check(doors, statuses, tally)
    assert engine.pool.checkedout() == 0


async def test_flask_on_waitress(doors: Door) -> None:
    engine = doors.make_engine(**POOL)
    factory = sessionmaker(engine)
    app = Flask(__name__)
    kit = SessionKit(app, factory, retry=RETRY)

    @app.put("/increment/<name>")
    def increment(name: str) -> str:
        kit.session.connection(execution_options={"isolation_level": "SERIALIZABLE"})
        account = kit.session.get_one(Account, 1)
        kit.session.add(User(name=name))
        account.balance += 1
        return ""

    @app.post("/<kind>/<name>")
    def work(kind: str, name: str) -> Any:
        kit.session.add(User(name=name))
        kit.session.flush()
        match kind:
            case "refused":
                abort(403)
            case "raised":
                raise ZeroDivisionError
            case "pledged":
                kit.session.add(Pledge(account_id=99))
            case "killed":
                kit.session.execute(KILL)
            case "returned":
                return "", 409
            case "twice":
                kit.session.add(User(name=name))
        return ""

    await doors.write("INSERT INTO accounts (id, owner, balance) VALUES (1, 'all', 0)")
    with waitress_serving(app) as port:
        statuses, tally = asyncio.run(load(port))
    await check(doors, statuses, tally)
    assert engine.pool.checkedout() == 0
