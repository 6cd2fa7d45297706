"""``settings=`` and ``role=``: from what a user writes to the text that a transaction runs with. Pure.

No message holds a value: a setting may be a secret.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import FunctionType
from typing import Any, Final, Literal
from uuid import UUID

from .errors import OptionError, SettingRequired

__all__ = ["NO_SETTINGS", "REQUIRED", "SYSTEM", "InForce", "SettingsAsked", "takes_one", "why_unknown"]


class ByTheScope(enum.Enum):
    """The type of `REQUIRED`."""

    REQUIRED = "REQUIRED"

    def __repr__(self) -> str:
        return "REQUIRED"


class WithoutSettings(enum.Enum):
    """The type of `SYSTEM`."""

    SYSTEM = "SYSTEM"

    def __repr__(self) -> str:
        return "SYSTEM"


REQUIRED: Final = ByTheScope.REQUIRED
"""In the `settings` of a factory, or as its `role`: no transaction of this factory begins without a value."""

SYSTEM: Final = WithoutSettings.SYSTEM
"""As the `settings` of a scope with a name: a transaction without settings, also where the factory requires some."""

SettingValue = str | int | UUID
# A function takes no argument; in a web integration one that takes one gets the request.
Setting = SettingValue | None | Callable[..., SettingValue | None]
Settings = Mapping[str, Setting] | Literal[WithoutSettings.SYSTEM]
Role = str | Callable[..., str | None] | None

_OPTIONS = {
    "statement_timeout": "write statement_timeout=, in seconds",
    "lock_timeout": "write lock_timeout=, in seconds",
    "idle_in_transaction_session_timeout": "write idle_timeout=, in seconds",
    "role": "write role=",
    "session_authorization": "write role=, or use an engine that connects as that user",
}
_OF_THE_TRANSACTION = ("transaction_", "default_transaction_")


@dataclass(frozen=True, slots=True)
class InForce:
    """What a transaction runs with.

    Attributes:
        values: the text of each setting, by its name in lower case.
        role: None: that of who has connected.
        system: it was asked to run without settings.
    """

    values: Mapping[str, str] = field(default_factory=dict)
    role: str | None = None
    system: bool = False

    def __bool__(self) -> bool:
        """Return whether the database has something to set."""
        return bool(self.values) or self.role is not None

    def lacks(self, asked: SettingsAsked) -> list[str]:
        """Return what a factory requires and this has not; "role" means a role."""
        if self.system:
            return []
        missing = [name for name in asked.required if not self.values.get(name)]
        return [*missing, "role"] if asked.role_required and self.role is None else missing


NOTHING_IN_FORCE = InForce()


@dataclass(frozen=True, slots=True)
class SettingsAsked:
    """What a factory or a scope was given as `settings` and `role`, checked.

    Attributes:
        values: by name in lower case: a value, or a function that returns one.
        required: the names that the factory demands.
        role: a name, or a function that returns one.
        role_required: whether the factory demands a role.
        system: whether a scope drops all settings.
    """

    values: tuple[tuple[str, Any], ...] = ()
    required: tuple[str, ...] = ()
    role: Any = None
    role_required: bool = False
    system: bool = False

    @property
    def demands(self) -> bool:
        """Whether no transaction may begin without something."""
        return bool(self.required) or self.role_required

    def but(self, options: Mapping[str, Any], where: str, *, defaults: bool) -> SettingsAsked:
        """Return this with the options `settings` and `role` put over it: on a scope by name, on a factory as a whole.

        Raises:
            OptionError: one has a value that cannot be honoured.
        """
        made = self
        if "settings" in options:
            made = made._with_settings(options["settings"], where, defaults=defaults)
        if "role" in options:
            made = made._with_role(options["role"], where, defaults=defaults)
        return made

    def _with_settings(self, given: Any, where: str, *, defaults: bool) -> SettingsAsked:
        if given is SYSTEM:
            if defaults:
                raise OptionError(
                    f"settings=SYSTEM was given to {where}, but it is for the scopes that are to run without their "
                    "factory's settings; leave it out there"
                )
            return replace(self, values=(), required=(), role_required=False, system=True)
        if given is REQUIRED:
            example = 'settings={"app.tenant": REQUIRED}'
            if not defaults:
                raise OptionError(_only_a_factory("settings=REQUIRED", where))
            raise OptionError(
                f"settings=REQUIRED was given to {where}; a factory requires settings by name, such as {example}"
            )
        if given is not None and not isinstance(given, Mapping):
            raise OptionError(
                f"settings= was given to {where} as {type(given).__name__}; it is a mapping from names to values, such as "
                '{"app.tenant": 7}, or SYSTEM'
            )
        values: dict[str, Any] = {}
        for written, value in (given or {}).items():
            name = _name(written, where)
            if name in values:
                raise OptionError(f"settings= was given to {where} with {name!r} twice; case makes no difference to it")
            values[name] = value if value is REQUIRED else _checked(name, value, where)
        demanded = tuple(name for name, value in values.items() if value is REQUIRED)
        if not defaults:
            if demanded:
                raise OptionError(_only_a_factory(f"settings={{{demanded[0]!r}: REQUIRED}}", where))
            return replace(self, values=tuple({**dict(self.values), **values}.items()), system=False)
        kept = tuple((name, value) for name, value in values.items() if value is not REQUIRED)
        return replace(self, values=kept, required=demanded)

    def _with_role(self, given: Any, where: str, *, defaults: bool) -> SettingsAsked:
        if given is REQUIRED:
            if not defaults:
                raise OptionError(_only_a_factory("role=REQUIRED", where))
            return replace(self, role=None, role_required=True)
        if callable(given):
            _check_function(given, "role", "", where)
        else:
            _check_role(given, where)
        return replace(self, role=given, role_required=self.role_required and not defaults)

    def in_force(self, unit: object, name: str | None, *, role_required: bool = False) -> InForce:
        """Ask the functions, and return what a transaction is to run with.

        Args:
            unit: what a message calls the scope.
            name: what the scope is called.
            role_required: whether a role is demanded elsewhere, so that a function that returns "" gives none.

        Raises:
            SettingRequired: the factory demands something that is missing.
            OptionError: a function returned what is no value, or ``SYSTEM`` was asked for without a name.
        """
        if self.system and _is_no_name(name):
            raise OptionError(
                f"settings=SYSTEM was asked for by {unit}, which has no name; give it name=, so that logs and traces show "
                "what runs without the settings of its factory"
            )
        found = InForce(self._texts(str(unit)), self._role(str(unit), self.role_required or role_required), self.system)
        if self.demands:
            refuse_lacking(self, found, f"{unit} was opened without")
        return found

    def _texts(self, where: str) -> dict[str, str]:
        texts: dict[str, str] = {}
        for name, value in self.values:
            asked = _called(value, f"settings={{{name!r}: ...}}", where) if callable(value) else value
            text = None if asked is None else _text(name, asked, where)
            if text is not None:
                texts[name] = text
        return texts

    def _role(self, where: str, required: bool) -> str | None:
        if not callable(self.role):
            role: str | None = self.role
            return role
        asked = _called(self.role, "role=", where)
        if asked == "" and required:
            return None  # what is demanded is not given
        _check_role(asked, where)
        return None if asked is None else str.__str__(asked)


def _is_no_name(name: str | None) -> bool:
    """Tell whether a name says nothing to the reader of a log."""
    return name is None or not name.strip() or name.endswith("<lambda>")


NO_SETTINGS = SettingsAsked()


def refuse_lacking(asked: SettingsAsked, running: InForce, what: str) -> None:
    """Refuse what runs without something that a factory demands.

    Args:
        asked: what the factory was given.
        running: what it runs with.
        what: says who runs; what is missing follows.

    Raises:
        SettingRequired: something is missing.
    """
    if missing := running.lacks(asked):
        raise SettingRequired(_missing(missing, what), missing[0])


def refuse_other(asked: SettingsAsked, given: frozenset[str], running: InForce, unit: object, name: str | None) -> None:
    """Refuse to join a transaction that runs with something else than was written on the scope.

    Args:
        asked: what was written on the scope itself; its functions are asked.
        given: the names of the options that were written on it.
        running: what the transaction runs with.
        unit: what a message calls that.
        name: what the scope is called.

    Raises:
        OptionError: they differ.
    """
    wanted = asked.in_force("a scope that joins", name)
    if wanted.system and not running.system:
        raise OptionError(
            f"settings=SYSTEM was asked for, but {unit} already runs with settings; {_WAY_OUT}, or for "
            "propagation='savepoint', which drops them until its end"
        )
    for setting, text in wanted.values.items():
        if running.values.get(setting) != text:
            found = "without it" if setting not in running.values else "with another value"
            raise OptionError(
                f"settings={{{setting!r}: ...}} was asked for, but {unit} already runs {found}; {_WAY_OUT}, or for "
                "propagation='savepoint', which changes it until its end"
            )
    if "role" in given and wanted.role != running.role:
        raise OptionError(
            f"role={wanted.role!r} was asked for, but {unit} already runs with role={running.role!r}; {_WAY_OUT}, or for "
            "propagation='savepoint', which changes it until its end"
        )


def narrowed(
    asked: SettingsAsked,
    given: frozenset[str],
    running: InForce,
    name: str | None,
    demanded: Sequence[SettingsAsked],
) -> tuple[InForce, dict[str, str | None]]:
    """Return what a savepoint scope runs with, and what the database has to change for that; None: back to the default.

    Args:
        asked: what was written on the scope itself; its functions are asked.
        given: the names of the options that were written on it.
        running: what the transaction runs with.
        name: what the scope is called.
        demanded: what the factories of the transaction and of the scope demand.

    Raises:
        SettingRequired: it would run without something that is demanded.
    """
    wanted = asked.in_force("a savepoint scope", name, role_required=any(each.role_required for each in demanded))
    values = {} if wanted.system else {**running.values, **wanted.values}
    role = wanted.role if "role" in given else running.role
    found = InForce(values, role)
    system = wanted.system
    if not system:
        # A scope that gives settings inside a SYSTEM one leaves it, so it needs all; one that changes the role stays in it.
        if running.system and not asked.values:
            system = any(found.lacks(each) for each in demanded)
        else:
            for each in demanded:
                refuse_lacking(each, found, "a savepoint scope was opened without")
    changes: dict[str, str | None] = {setting: values.get(setting) for setting in {**running.values, **values}}
    changed = {setting: text for setting, text in changes.items() if text != running.values.get(setting)}
    if role != running.role:
        changed["role"] = role
    return InForce(values, role, system), changed


_WAY_OUT = "ask for it on the outermost scope, or for propagation='new'"


def _only_a_factory(what: str, where: str) -> str:
    return (
        f"{what} was given to {where}; it is a factory that requires: give a value here, or a function that returns one"
    )


def _missing(missing: list[str], what: str) -> str:
    settings = [name for name in missing if name != "role"]
    names = [repr(name) for name in settings] + (["a role"] if "role" in missing else [])
    example = ", ".join(f'"{name}": ...' for name in settings)
    give = ([f"settings={{{example}}}"] if settings else []) + (["role=..."] if "role" in missing else [])
    return (
        f"{what} {' and '.join(names)}, which its factory requires; give it to the scope, as "
        f"Session.scope({', '.join(give)}), or to the web integration; work that spans all tenants opens its scope "
        "with settings=SYSTEM and name="
    )


def _name(written: Any, where: str) -> str:
    """Return the name of a setting as it is compared: the database makes no difference of case either."""
    if not isinstance(written, str) or not written or "\0" in written:
        raise OptionError(
            f"settings= was given to {where} with {written!r}, which is no name of a setting; it is a string such as "
            '"app.tenant"'
        )
    name = str.__str__(written).lower()
    if name in _OPTIONS:
        raise OptionError(f"settings={{{name!r}: ...}} was given to {where}; {_OPTIONS[name]}")
    if name.startswith(_OF_THE_TRANSACTION):
        raise OptionError(
            f"settings={{{name!r}: ...}} was given to {where}; what a transaction is has options of its own: isolation=, "
            "read_only=, deferrable= and the timeouts"
        )
    if problem := why_unknown(name):
        raise OptionError(f"settings={{{name!r}: ...}} was given to {where}; {problem}")
    return name


def why_unknown(name: str) -> str | None:
    """Return why PostgreSQL has no setting of this name; None: it may have one."""
    if "." in name:
        return None
    from ._parameters import PARAMETERS  # only for such a name

    if name.lower() in PARAMETERS:
        return None
    return (
        f"PostgreSQL has no parameter {name!r}, and a setting of your own has a dot in its name, such as 'app.tenant' (for a "
        "parameter that only a newer server has, execute SET LOCAL in the body)"
    )


def _checked(name: str, value: Any, where: str) -> Any:
    if callable(value):
        _check_function(value, "settings", f" for {name!r}", where)
    elif value is not None:
        _text(name, value, where)
    return value


def _text(name: str, value: Any, where: str) -> str:
    """Return the text of a value.

    Raises:
        OptionError: it has none.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        text = str.__str__(value)
        if "\0" in text:
            raise OptionError(
                f"settings={{{name!r}: ...}} was given to {where} with a NUL in its value, which no text holds"
            )
        try:
            text.encode()
        except UnicodeEncodeError:
            raise OptionError(
                f"settings={{{name!r}: ...}} was given to {where} with lone surrogates in its value, which have no bytes"
            ) from None
        return text
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, UUID):
        return str(value)
    raise OptionError(
        f"settings={{{name!r}: ...}} was given to {where} with {_kind(value)}; a value is a str, int, "
        "bool or UUID, or a function without arguments that returns one"
    )


def _check_role(role: Any, where: str) -> None:
    if role is None:
        return
    if isinstance(role, str) and "\0" in role:
        raise OptionError(f"role= was given to {where} with a NUL in its name, which no role has")
    if not isinstance(role, str):
        raise OptionError(
            f"role= was given to {where} with {_kind(role)}; it is the name of a role, a function without arguments "
            "that returns one, or None"
        )
    if role == "" or role.lower() == "none":
        raise OptionError(
            f"role={str.__str__(role)!r} was given to {where}, which is no role; write role=None for no role"
        )


def _kind(value: Any) -> str:
    """Say what a value is without showing it."""
    if value is REQUIRED or value is SYSTEM:
        return repr(value)
    return f"a value of type {type(value).__name__}"


def _check_function(fn: Callable[..., Any], option: str, of: str, where: str) -> None:
    if inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None)):  # noqa: B004
        raise OptionError(
            f"{option}= was given to {where} with an async function{of}; it would have to be awaited before the scope begins; "
            "pass a sync function"
        )
    by_position, by_name = _arguments_of(fn)
    if by_position or by_name:
        how = "by name" if by_name else f"{by_position} by position"
        raise OptionError(
            f"{option}= was given to {where} with a function{of} that takes arguments ({how}); it is called without arguments "
            "(only in a web integration a function with one positional argument gets the request)"
        )


def takes_one(fn: Callable[..., Any]) -> bool:
    """Tell whether a function has to be given one argument by position, and no other."""
    return _arguments_of(fn) == (1, 0)


def _arguments_of(fn: Callable[..., Any]) -> tuple[int, int]:
    """Return how many arguments a function has to be given by position, and how many by name only."""
    if isinstance(fn, FunctionType):  # as fast as that: a web integration asks with each request
        code = fn.__code__
        by_name = code.co_kwonlyargcount - len(fn.__kwdefaults__ or {})
        return code.co_argcount - len(fn.__defaults__ or ()), by_name
    try:
        parameters = inspect.signature(fn).parameters.values()
    except ValueError:  # a function in C may have no signature
        return 0, 0
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [each for each in parameters if each.default is inspect.Parameter.empty and each.kind not in optional]
    by_name = sum(each.kind is inspect.Parameter.KEYWORD_ONLY for each in required)
    return len(required) - by_name, by_name


def _called(fn: Callable[[], Any], option: str, where: str) -> Any:
    result = fn()
    if hasattr(result, "__await__"):
        if inspect.iscoroutine(result):
            result.close()
        raise OptionError(
            f"the function of {option} returned something to be awaited to {where}; it is called at once, so return the value"
        )
    return result
