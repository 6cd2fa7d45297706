"""What a scope does when it is entered, decided before anything is done.

Pure: a request and what already runs go in, a step or an error comes out. Both colours obey the same answer.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict, get_args

from .errors import OptionError, ScopeError, UnknownOptionError

__all__ = ["Options", "Propagation", "Request", "Step", "plan", "plan_passed"]

Propagation = Literal["join", "savepoint", "new", "require", "forbid"]


class Options(TypedDict, total=False):
    """The keyword arguments of a scope."""

    propagation: Propagation
    name: str


class Step(enum.Enum):
    """What entering a scope does to the database."""

    OPEN = "begin a transaction on a new session"
    JOIN = "take part in the transaction that runs"
    SAVEPOINT = "set a savepoint in the transaction that runs"


@dataclass(frozen=True, slots=True)
class Request:
    """The options of one scope, checked."""

    propagation: Propagation = "join"
    name: str | None = None

    def but(self, options: Options | dict[str, Any], where: str) -> Request:
        """Return this request with `options` put over it.

        Raises:
            UnknownOptionError: there is no such option.
            OptionError: an option has a value that cannot be honoured.
        """
        if not options:
            return self
        known = Options.__annotations__
        for option in options:
            if option not in known:
                raise UnknownOptionError(option, known, where)
        changed = replace(self, **options)
        if changed.propagation not in get_args(Propagation):
            raise OptionError(
                f"propagation={changed.propagation!r} was asked of {where}; "
                f"it is one of {', '.join(map(repr, get_args(Propagation)))}"
            )
        name: object = changed.name
        if name is not None and not isinstance(name, str):
            raise OptionError(f"name={name!r} was given to {where}; it is a string or None")
        return changed


def plan(running: object | None, request: Request) -> Step:
    """Decide what entering a scope does.

    Args:
        running: the scope of the same factory that is open here (its ``str()`` goes into the message), or None.
        request: the options of the scope that is entered.

    Raises:
        ScopeError: the propagation does not allow it.
    """
    propagation = request.propagation
    if running is None:
        if propagation != "require":
            return Step.OPEN
        raise ScopeError(
            "propagation='require' was asked for, but no scope of this factory is open in this thread and task; "
            "call this inside one, or ask for propagation='join'"
        )
    if propagation in ("join", "require"):
        return Step.JOIN
    if propagation == "savepoint":
        return Step.SAVEPOINT
    if propagation == "new":
        return Step.OPEN
    raise ScopeError(
        f"propagation='forbid' was asked for, but {running} is already open and its transaction would decide over "
        f"this one; "
        "call this outside of it, or ask for propagation='join' or 'new'"
    )


def plan_passed(request: Request) -> Step:
    """Decide what a decorated function does with a session that its caller passed in.

    Raises:
        ScopeError: the propagation asks for a transaction of its own.
    """
    if request.propagation in ("join", "require"):
        return Step.JOIN
    if request.propagation == "savepoint":
        return Step.SAVEPOINT
    raise ScopeError(
        f"propagation={request.propagation!r} asks for a transaction of its own, but a session was passed in, "
        "and it belongs to the caller; leave the session out, or ask for propagation='join' or 'savepoint'"
    )
