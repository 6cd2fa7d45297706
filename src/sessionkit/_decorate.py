"""A scope as a decorator: a fresh scope for each call, and the session supplied.

Two forms. *First*: the function's first parameter receives the session and disappears from the caller's signature.
*Keyword*: a parameter whose default is `INJECTED` receives it, unless the caller passes a session.
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

from ._attempts import async_call, call
from .errors import ColourError, ScopeError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["INJECTED", "Form", "form_of", "wrap", "wrap_async"]


R = TypeVar("R")


class _Injected:
    """The default of a parameter that a scope supplies."""

    def __repr__(self) -> str:
        return "INJECTED"

    def __reduce__(self) -> str:
        return "INJECTED"  # a copy of it, as frameworks make of defaults, is itself

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ScopeError(
            f"a function with a parameter `= INJECTED` was called without a scope, so there is no session to take "
            f".{name} from; "
            "decorate it with @Session.scope, or pass a session"
        )


INJECTED: Any = _Injected()
"""Default for the session parameter of a function that is decorated with a scope."""


class Form(NamedTuple):
    """How a decorated function takes its session."""

    keyword: str | None  # None: as its first argument
    position: int | None  # where the caller may pass it by position in the keyword form
    signature: inspect.Signature  # what the caller sees


def form_of(fn: Callable[..., Any], asynchronous: bool, asked: str) -> Form:
    """Find out how `fn` takes its session.

    Raises:
        ColourError: `fn` is async and the factory is not, or the other way round.
        ScopeError: `fn` is a generator function, a method in the first form, or takes no session.
    """
    name = getattr(fn, "__qualname__", repr(fn))
    if not callable(fn):
        raise ScopeError(f"{asked} decorates a function, not {fn!r}; its options are keyword arguments")
    if inspect.isclass(fn):
        raise ScopeError(f"{asked} decorates a function, not the class {name}; decorate its methods")
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        with_ = "async with" if asynchronous else "with"
        raise ScopeError(
            f"{name} is a generator function: its body runs while the caller iterates, so a scope around the call "
            f"would have "
            f"ended before; open the scope inside it instead: `{with_} Session.scope() as session: ... yield ...`"
        )
    if inspect.iscoroutinefunction(fn) and not asynchronous:
        raise ColourError(f"{name} is async, but the factory of {asked} is sync; use an async_sessionmaker")
    if asynchronous and not inspect.iscoroutinefunction(fn):
        raise ColourError(
            f"{name} is not async, but the factory of {asked} is; write `async def`, or use a sessionmaker"
        )
    signature = inspect.signature(fn)
    parameters = list(signature.parameters.values())
    for position, parameter in enumerate(parameters):
        if parameter.default is INJECTED:
            if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
                raise ScopeError(
                    f"{name} takes {parameter.name!r} by position only, where INJECTED cannot be put in its place; "
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


def _passed(form: Form, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the session that the caller passed, or INJECTED."""
    assert form.keyword is not None
    if form.position is not None and len(args) > form.position:
        return args[form.position]
    return kwargs.get(form.keyword, INJECTED)


def _finish(wrapper: Any, fn: Callable[..., Any], form: Form) -> Any:
    functools.update_wrapper(wrapper, fn)
    wrapper.__signature__ = form.signature
    return wrapper


def wrap(scope: Any, fn: Callable[..., Any], form: Form) -> Any:
    """Return `fn` inside a sync scope."""
    keyword, policy = form.keyword, scope._policy()
    if keyword is None:

        def first(*args: Any, **kwargs: Any) -> Any:
            if policy is not None:
                return call(scope, policy, lambda session: _settled(fn(session, *args, **kwargs), fn))
            with scope as session:
                return _settled(fn(session, *args, **kwargs), fn)

        return _finish(first, fn, form)

    def keyed(*args: Any, **kwargs: Any) -> Any:
        passed = _passed(form, args, kwargs)
        if passed is not INJECTED:
            with scope._passed(passed):
                return _settled(fn(*args, **kwargs), fn)
        if policy is not None:
            return call(scope, policy, lambda session: _settled(fn(*args, **{**kwargs, keyword: session}), fn))
        with scope as session:
            kwargs[keyword] = session
            return _settled(fn(*args, **kwargs), fn)

    return _finish(keyed, fn, form)


def _settled(result: R, fn: Callable[..., Any]) -> R:
    """Return what a sync function returned, unless it would only run when its scope is over."""
    if hasattr(result, "__await__"):
        if inspect.iscoroutine(result):
            result.close()
        raise ColourError(
            f"{getattr(fn, '__qualname__', fn)!r} returned an awaitable, but its scope is sync and would be over "
            f"before that "
            "runs; use an async_sessionmaker"
        )
    return result


def wrap_async(scope: Any, fn: Callable[..., Any], form: Form) -> Any:
    """Return `fn` inside an async scope."""
    keyword, policy = form.keyword, scope._policy()
    if keyword is None:

        async def first(*args: Any, **kwargs: Any) -> Any:
            if policy is not None:
                return await async_call(scope, policy, lambda session: fn(session, *args, **kwargs))
            async with scope as session:
                return await fn(session, *args, **kwargs)

        return _finish(first, fn, form)

    async def keyed(*args: Any, **kwargs: Any) -> Any:
        passed = _passed(form, args, kwargs)
        if passed is not INJECTED:
            async with scope._passed(passed):
                return await fn(*args, **kwargs)
        if policy is not None:
            return await async_call(scope, policy, lambda session: fn(*args, **{**kwargs, keyword: session}))
        async with scope as session:
            kwargs[keyword] = session
            return await fn(*args, **kwargs)

    return _finish(keyed, fn, form)
