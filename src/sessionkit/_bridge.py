"""The bridge between sync and async code."""

from __future__ import annotations

import asyncio
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy.util import await_only, greenlet_spawn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

P = ParamSpec("P")
R = TypeVar("R")


def over_async(
    fn: Callable[Concatenate[Session, P], R],
) -> Callable[Concatenate[AsyncSession, P], Coroutine[Any, Any, R]]:
    """Return the async twin of a function that works on a session.

    The twin takes an ``AsyncSession`` instead of the ``Session`` and runs `fn` through ``run_sync``. Everything else is
    the same: arguments, result, errors, SQL.
    """

    @wraps(fn)
    async def twin(session: AsyncSession, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return await session.run_sync(fn, *args, **kwargs)

    twin.__name__ = f"async_{fn.__name__}"
    twin.__qualname__ = twin.__name__
    return twin


async def to_completion(work: Awaitable[R]) -> tuple[R, asyncio.CancelledError | None]:
    """Await `work` to its end, however often the awaiting task is cancelled in the meantime.

    Returns:
        What `work` returned, and the first cancellation that arrived. The caller raises it after it has done what must
        be done: a COMMIT that is cut in two leaves its outcome unknown.

    Raises:
        asyncio.CancelledError: the task was cancelled and `work` failed too; ``__cause__`` is its error.
        BaseException: what `work` raised.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    error: BaseException | None = None
    try:
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError as cancellation:
                if task.cancelled():
                    raise
                cancelled = cancelled or cancellation
            except BaseException:  # noqa: BLE001 - task.result() raises it below
                break
        if cancelled is not None and (error := task.exception()) is not None:
            raise cancelled from error
        return task.result(), cancelled
    finally:
        # The raised exception's traceback holds this frame: an error that the frame holds would live until a collection.
        del task, cancelled, error


async def cut_once(work: Coroutine[Any, Any, R]) -> tuple[R, asyncio.CancelledError | None]:
    """Await `work`. The first cancellation of the awaiting task cuts it; later ones do not, so it cleans up undisturbed.

    Returns:
        What `work` returned, and the cancellation that came too late to cut it: the caller gives back what it got, and
        raises the cancellation.

    Raises:
        asyncio.CancelledError: the task was cancelled, and `work` with it.
        BaseException: what `work` raised.
    """
    task = asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    error: BaseException | None = None
    try:
        try:
            return await asyncio.shield(task), None
        except asyncio.CancelledError as cancellation:
            if task.cancelled():
                raise
            cancelled = cancellation
        if not task.cancelling():  # a loop that shuts down cancels all tasks
            task.cancel()
        await to_completion(asyncio.wait([task]))
        if task.cancelled():
            raise cancelled
        if (error := task.exception()) is not None:
            raise cancelled from error
        return task.result(), cancelled
    finally:
        del task, cancelled, error  # see to_completion


def uncut(work: Callable[[], object]) -> None:
    """Call `work`, which awaits through the greenlet bridge, to its end, however often its task is cancelled meanwhile.

    Raises:
        asyncio.CancelledError: the task was cancelled; `work` has finished.
        BaseException: what `work` raised.
    """
    _, cancelled = await_only(to_completion(greenlet_spawn(work)))
    if cancelled is not None:
        try:
            raise cancelled
        finally:
            del cancelled
