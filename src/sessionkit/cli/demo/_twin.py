"""The step about async code."""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ._stage import Account, LeftOut, in_memory

if TYPE_CHECKING:
    from sqlalchemy.engine import URL, Engine

    from ._stage import Stage


def async_twin(stage: Stage) -> str:
    """The same in async code."""
    url = _async_url(stage.engine)
    from sqlalchemy.ext.asyncio import create_async_engine

    from sessionkit.async_factory import async_sessionmaker

    engine = create_async_engine(url)
    stage.ledger.follow(engine.sync_engine)
    Session = async_sessionmaker(engine)

    async def code() -> None:
        async with Session.scope() as session:
            ann = await session.get_one(Account, "ann")
            ann.balance += 40

    async def code_and_dispose() -> None:
        try:
            await code()
        finally:
            await engine.dispose()

    def in_a_loop() -> None:
        # Not the default loop: psycopg cannot use the default one of Windows.
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            runner.run(code_and_dispose())

    in_a_loop.__wrapped__ = code  # type: ignore[attr-defined]  # what is shown
    ran = stage.play(in_a_loop)
    stage.expect(ran.error is None, f"it raised {ran.error!r}")
    stage.expect_balances(ann=100, bob=45, safe=20)
    return "the same name for sync and async: an async factory makes async scopes"


def _async_url(engine: Engine) -> URL:
    """Return the URL for the async driver.

    Raises:
        LeftOut: there is no async driver, or it is not installed.
    """
    url = engine.url
    driver = {"sqlite": "aiosqlite", "postgresql": "psycopg"}.get(url.get_backend_name())
    if driver is None:
        raise LeftOut(f"the demo knows no async driver for {url.get_backend_name()}")
    if in_memory(engine):
        raise LeftOut("a second engine cannot see a SQLite database in memory")
    missing = [name for name in ("greenlet", driver) if find_spec(name) is None]
    if missing:
        raise LeftOut(f"needs {' and '.join(missing)}")
    return url.set(drivername=f"{url.get_backend_name()}+{driver}")
