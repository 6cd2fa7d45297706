"""Options that are functions of a call's arguments: the arguments are bound once, then passed by name. Pure."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def check_callable(fn: Callable[..., Any], option: str, where: str) -> None:
    """Refuse an async function: it would have to be awaited before the scope begins.

    Raises:
        OptionError: it is async.
    """
    if inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None)):  # noqa: B004
        raise OptionError(
            f"{option}={fn!r} was given to {where}, but it is async and would have to be awaited; pass a sync function"
        )


class Arguments(NamedTuple):
    """The arguments of one call, defaults applied, the session left out.

    Attributes:
        named: by name, those of ``**rest`` too.
        values: in the order of the signature, those of ``**rest`` as a dict.
    """

    named: dict[str, Any]
    values: list[Any]


NO_ARGUMENTS = Arguments({}, [])


def bound(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any], without: str | None = None
) -> Arguments:
    """Return the arguments of a call, with defaults applied and without the session's parameter, `without`.

    Raises:
        TypeError: the function cannot be called with these arguments.
    """
    taken = signature.bind(*args, **kwargs)
    taken.apply_defaults()
    taken.arguments.pop(without or "", None)
    named: dict[str, Any] = dict(taken.arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            named = {**named.pop(name), **named}
    return Arguments(named, list(taken.arguments.values()))


def without_session(fn: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of a function without its first parameter, the session."""
    try:
        signature = inspect.signature(fn)
    except ValueError:  # a function written in C may have none
        return inspect.Signature([inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL)])
    parameters = list(signature.parameters.values())
    first = parameters[0] if parameters else None
    if first is None or first.kind is inspect.Parameter.VAR_POSITIONAL:
        return signature
    return signature.replace(parameters=parameters[1:])


def ask(fn: Callable[..., Any], arguments: Mapping[str, Any], option: str) -> Any:
    """Call an option's function with the arguments of the call that it names, or with all of them if it takes ``**rest``.

    Raises:
        OptionError: it names an argument that the call does not have, or it returns an awaitable.
    """
    try:
        parameters = inspect.signature(fn).parameters.values()
    except ValueError:
        return fn()
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for parameter in parameters:
        name = parameter.name
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            kwargs = {**{key: value for key, value in arguments.items() if key not in _names(parameters)}, **kwargs}
        elif parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            continue
        elif name not in arguments:
            if parameter.default is inspect.Parameter.empty:
                there = ", ".join(map(repr, arguments)) or "none"
                raise OptionError(
                    f"{option}= is a function of {name!r}, but the call has no such argument; it has {there} (a plain "
                    "`with` and attempts() have none)"
                )
        elif parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            args.append(arguments[name])
        else:
            kwargs[name] = arguments[name]
    result = fn(*args, **kwargs)
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()
        raise OptionError(f"the function of {option}= returned an awaitable, but it is called in sync code")
    return result


def _names(parameters: Any) -> set[str]:
    return {parameter.name for parameter in parameters}
