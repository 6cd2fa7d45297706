"""A scope as a decorator: each call gets a fresh scope and its session.

There are two forms. *First*: the first parameter gets the session, and disappears from the signature that callers see.
*Keyword*: a parameter whose default is `INJECTED` gets it, unless the caller passes a session.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

from ._arguments import bound, without_session
from ._attempts import async_call, call
from .context import top
from .errors import ScopeError, SyncAsyncMismatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._arguments import Arguments

__all__ = ["INJECTED", "Form", "async_run", "form_of", "run", "wrap", "wrap_async"]


R = TypeVar("R")


class _Injected:
    """The default of a parameter that a scope supplies."""

    def __repr__(self) -> str:
        return "INJECTED"

    def __reduce__(self) -> str:
        return "INJECTED"  # frameworks copy defaults, and a copy of it is itself

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ScopeError(
            "a function with a parameter `= INJECTED` was called without a scope, so there is no session to take "
            f".{name} from; decorate it with @Session.scope, or pass a session"
        )


INJECTED: Any = _Injected()
"""The default for the session parameter of a function that is decorated with a scope."""


class Form(NamedTuple):
    """How a decorated function receives its session."""

    keyword: str | None  # None: as its first argument
    position: int | None  # where the caller may pass it by position in the keyword form
    signature: inspect.Signature  # what the caller sees

    def passed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the session that the caller passed, or INJECTED."""
        if self.keyword is None:
            return INJECTED
        if self.position is not None and len(args) > self.position:
            return args[self.position]
        return kwargs.get(self.keyword, INJECTED)

    def arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """Return the arguments of a call, without the session."""
        return bound(self.signature, args, kwargs, self.keyword)

    def session_first(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Return `fn` with the session as its first argument."""
        keyword, position = self.keyword, self.position
        if keyword is None:
            return fn

        @functools.wraps(fn)
        def first(session: object, /, *args: Any, **kwargs: Any) -> Any:
            if position is not None and len(args) > position:  # the caller passed INJECTED by position
                return fn(*args[:position], session, *args[position + 1 :], **kwargs)
            kwargs[keyword] = session
            return fn(*args, **kwargs)

        return first


def form_of(fn: Callable[..., Any], asynchronous: bool, asked: str) -> Form:
    """Find out how `fn` takes its session.

    Raises:
        SyncAsyncMismatch: `fn` is async and the factory is not, or the other way round.
        ScopeError: `fn` is a generator function, a method in the first form, or takes no session.
    """
    name = _name(fn)
    _check(fn, asynchronous, f"{asked} decorates", "its options are keyword arguments", "decorate its methods")
    if asynchronous and not inspect.iscoroutinefunction(fn):
        raise _not_async(fn)
    signature = inspect.signature(fn)
    parameters = list(signature.parameters.values())
    for position, parameter in enumerate(parameters):
        if parameter.default is INJECTED:
            if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
                raise ScopeError(
                    f"{name} takes {parameter.name!r} by position only, so no scope can pass it by name; "
                    f"move it behind the `/`, or make it `*, {parameter.name}: Session = INJECTED`"
                )
            by_position = parameter.kind is not inspect.Parameter.KEYWORD_ONLY
            return Form(parameter.name, position if by_position else None, signature)
    if not parameters or parameters[0].kind not in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    ):
        raise ScopeError(
            f"{name} has no parameter for the session; make it the first one, or add `*, session: Session = INJECTED`"
        )
    if parameters[0].name in ("self", "cls"):
        raise ScopeError(
            f"{name} is a method: its first parameter is {parameters[0].name!r}, not a session; "
            "add `*, session: Session = INJECTED` to it"
        )
    return Form(None, None, signature.replace(parameters=parameters[1:]))


def _name(fn: object) -> str:
    return getattr(fn, "__qualname__", None) or repr(fn)


def _check(fn: Callable[..., Any], asynchronous: bool, does: str, hint: str, hint_for_class: str) -> None:
    """Refuse a value that is not a function, and a function that the scope would not surround.

    Raises:
        SyncAsyncMismatch: `fn` is async and the factory is not.
        ScopeError: `fn` is not a function, or is a class or a generator function.
    """
    name = _name(fn)
    if not callable(fn):
        raise ScopeError(f"{does} a function, not {fn!r}; {hint}")
    if inspect.isclass(fn):
        raise ScopeError(f"{does} a function, not the class {name}; {hint_for_class}")
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        with_ = "async with" if asynchronous else "with"
        raise ScopeError(
            f"{name} is a generator function: its body runs while the caller iterates, after a scope around the call has "
            f"ended; open the scope inside it instead: `{with_} Session.scope() as session: ... yield ...`"
        )
    if inspect.iscoroutinefunction(fn) and not asynchronous:
        raise SyncAsyncMismatch(f"{name} is async, but its scope belongs to a sync factory; use an async_sessionmaker")


def _not_async(fn: object) -> SyncAsyncMismatch:
    return SyncAsyncMismatch(
        f"{_name(fn)} is not async, but its scope belongs to an async factory; write `async def`, or use a sessionmaker"
    )


def wrap(scope: Any, fn: Callable[..., Any], form: Form) -> Any:
    """Return `fn` inside a sync scope."""
    first = form.session_first(fn)

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        passed = form.passed(args, kwargs)
        entered = scope._called_with(form.arguments(args, kwargs)) if scope._request.asks else scope
        if passed is INJECTED:
            return _call(entered, first, args, kwargs)
        with entered._passed(passed):
            if entered._request.once is not None:
                return _once(fn)(*args, **kwargs)
            return _settled(fn(*args, **kwargs), fn)

    wrapper.__signature__ = form.signature  # type: ignore[attr-defined]
    return wrapper


def wrap_async(scope: Any, fn: Callable[..., Any], form: Form) -> Any:
    """Return `fn` inside an async scope."""
    first = form.session_first(fn)

    @functools.wraps(fn)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        passed = form.passed(args, kwargs)
        entered = scope._called_with(form.arguments(args, kwargs)) if scope._request.asks else scope
        if passed is INJECTED:
            return await _async_call(entered, first, args, kwargs)
        async with entered._passed(passed):
            return await (fn if entered._request.once is None else _async_once(fn))(*args, **kwargs)

    wrapper.__signature__ = form.signature  # type: ignore[attr-defined]
    return wrapper


def run(scope: Any, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call ``fn(session, *args, **kwargs)`` in a sync scope, retried if its policy says so; return what it returns.

    Raises:
        SyncAsyncMismatch: `fn` is async.
        ScopeError: `fn` is not a function, or is a generator function.
    """
    _check(fn, False, "run() calls", _TAKES, _TAKES)
    return _call(_around(scope, fn, args, kwargs), fn, args, kwargs)


async def async_run(scope: Any, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Await ``fn(session, *args, **kwargs)`` in an async scope, retried if its policy says so; return its result.

    Raises:
        SyncAsyncMismatch: `fn` is not async.
        ScopeError: `fn` is not a function, or is a generator function.
    """
    _check(fn, True, "run() calls", _TAKES, _TAKES)
    entered = _around(scope, fn, args, kwargs)
    if not inspect.iscoroutinefunction(fn):
        if inspect.isroutine(fn) and fn.__name__ != "<lambda>":
            raise _not_async(fn)
        fn = _awaited(fn)  # a lambda, or an object with __call__: only the call shows whether it can be awaited
    return await _async_call(entered, fn, args, kwargs)


def _around(scope: Any, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    entered = scope._around(fn)
    return entered._called_with(bound(without_session(fn), args, kwargs)) if entered._request.asks else entered


_TAKES = "pass a function that takes the session, followed by the function's own arguments"


def _awaited(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    async def awaited(*args: Any, **kwargs: Any) -> Any:
        result = fn(*args, **kwargs)
        if not inspect.isawaitable(result):
            raise _not_async(fn)
        return await result

    return awaited


def _call(scope: Any, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    policy = scope._policy()
    if scope._request.once is not None:
        fn = _once(fn)
    if policy is not None:
        return call(scope, policy, lambda session: _settled(fn(session, *args, **kwargs), fn))
    with scope as session:
        return _settled(fn(session, *args, **kwargs), fn)


async def _async_call(scope: Any, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    policy = scope._policy()
    if scope._request.once is not None:
        fn = _async_once(fn)
    if policy is not None:
        return await async_call(scope, policy, lambda session: fn(session, *args, **kwargs))
    async with scope as session:
        return await fn(session, *args, **kwargs)


def _once(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return `fn` for a scope that has a key: the stored result takes the place of another run."""

    def once(*args: Any, **kwargs: Any) -> Any:
        entry: Any = top()
        return entry.claim.answer() if entry.claim.replayed else _kept(entry, _settled(fn(*args, **kwargs), fn))

    return once


def _async_once(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return `fn` for a scope that has a key: the stored result takes the place of another run."""

    async def once(*args: Any, **kwargs: Any) -> Any:
        entry: Any = top()
        return entry.claim.answer() if entry.claim.replayed else _kept(entry, await fn(*args, **kwargs))

    return once


def _kept(entry: Any, result: R) -> R:
    """Have a scope store what its function returned, unless it asked for a rollback."""
    if not entry.rollback_only:
        entry.claim.keep(result)
    return result


def _settled(result: R, fn: Callable[..., Any]) -> R:
    """Return what a sync function returned, unless that would only run after its scope has ended."""
    if hasattr(result, "__await__"):
        if inspect.iscoroutine(result):
            result.close()
        raise SyncAsyncMismatch(
            f"{_name(fn)!r} returned an awaitable, but its scope is sync and would have ended before that runs; use an "
            "async_sessionmaker"
        )
    return result
