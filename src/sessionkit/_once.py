"""``once=``: which key, which fingerprint, and how a result is stored: from what a user writes to what a row holds. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from ._arguments import ask, check_callable
from .errors import OnceResult, OptionError, describe

if TYPE_CHECKING:
    from ._arguments import Arguments

KIN = ("fingerprint", "codec", "once_ttl")
"""The options that say more of ``once=``."""

LONGEST = 200
"""How many characters a key may have."""

WEEK = 604_800.0
"""How long a key is kept where nothing else was asked for, in seconds."""

_LONGEST_TTL = 3_155_760_000.0  # a hundred years, which every server can add to its clock

Codec = tuple[Callable[[Any], str | bytes], Callable[[Any], Any]]
"""How a result is stored: what makes a ``str`` or ``bytes`` of it, and what makes it of that again."""


class BeginAgain(Exception):
    """A claim has lost a race that shows in an older snapshot only: another transaction, begun now, finds the answer."""


@dataclass(frozen=True, slots=True)
class Once:
    """What a scope was asked for, checked: each key and fingerprint may be a function of the call's arguments.

    Attributes:
        key: of the unit.
        fingerprint: tells calls apart that must not share a key; None: the arguments do.
        codec: None: JSON.
        ttl: how long the key is kept, in seconds.
        called: the functions have been asked; key and fingerprint are those of a call.
        wait: how long to wait for another unit with the key, in seconds; None: no limit of its own.
        kind: of the key, since units, requests and messages have names of their own.
    """

    key: Any
    fingerprint: Any = None
    codec: Codec | None = None
    ttl: float = WEEK
    called: bool = False
    wait: float | None = None
    kind: str = "U"

    def called_with(self, arguments: Arguments) -> Once:
        """Return the key and fingerprint of one call.

        Raises:
            OptionError: there is no key, or an argument has no fingerprint.
        """
        key = ask(self.key, arguments.named, "once") if callable(self.key) else self.key
        check_key(key, "once")
        return Once(key, self._fingerprint(arguments), self.codec, self.ttl, True)

    def _fingerprint(self, arguments: Arguments) -> str:
        given = self.fingerprint
        if given is None:
            return _fingerprint_of(arguments)
        return _checked(ask(given, arguments.named, "fingerprint") if callable(given) else given, "returned")


def once_of(options: Any, where: str) -> Once | None:
    """Return what ``once=`` and its kin ask for.

    Raises:
        OptionError: one of them has a value that cannot be honoured, or comes without ``once=``.
    """
    key = options.get("once")
    if key is None:
        for option in KIN:
            if options.get(option) is not None:
                raise OptionError(f"{option}= was given to {where} without once=, whose results it is about")
        return None
    if callable(key):
        check_callable(key, "once", where)
    else:
        check_key(key, "once")
    fingerprint, codec = options.get("fingerprint"), options.get("codec")
    if callable(fingerprint):
        check_callable(fingerprint, "fingerprint", where)
    elif fingerprint is not None:
        _checked(fingerprint, "was given to " + where)
    if codec is not None:
        _check_codec(codec, where)
    ttl = options.get("once_ttl")
    return Once(
        key, fingerprint, codec, WEEK if ttl is None else check_ttl(ttl, f"once_ttl={ttl!r} was given to {where}")
    )


def _check_codec(codec: Any, where: str) -> None:
    if not isinstance(codec, tuple) or len(codec) != 2 or not all(map(callable, codec)):
        raise OptionError(
            f"codec={codec!r} was given to {where}; it is a pair of functions, (dumps, loads), such as "
            "(pickle.dumps, pickle.loads)"
        )
    for fn in codec:
        check_callable(fn, "codec", where)


def check_key(key: object, option: str) -> str:
    """Return a key that is one.

    Raises:
        OptionError: it is not.
    """
    if isinstance(key, str) and 0 < len(key) <= LONGEST and "\0" not in key and _has_bytes(key):
        return str.__str__(key)
    what = f"one of {len(key)} characters" if isinstance(key, str) and len(key) > LONGEST else repr(key)
    raise OptionError(
        f"the key of {option} is {what}; a key is a string of 1 to {LONGEST} characters, without NUL and lone surrogates, "
        "such as f'pay:{order_id}'"
    )


def check_ttl(seconds: Any, given: str) -> float:
    """Return how long a key is kept, in seconds.

    Raises:
        OptionError: it is no such time.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= _LONGEST_TTL:
        raise OptionError(f"{given}; it is a number of seconds above 0, and at most a hundred years")
    return float(seconds)


def _has_bytes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# -- fingerprints ---------------------------------------------------------------------------------------------------


def _fingerprint_of(arguments: Arguments) -> str:
    try:
        text = json.dumps(arguments.values, sort_keys=True, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise OptionError(
            f"once= was asked for, and JSON cannot say the arguments of this call ({describe(error)}), so they have no "
            "fingerprint; give fingerprint= a function of them that returns a string, or a string that is always the same"
        ) from error
    return sha256(text.encode()).hexdigest()


def _checked(fingerprint: Any, given: str) -> str:
    if isinstance(fingerprint, str) and "\0" not in fingerprint and _has_bytes(fingerprint):
        return str.__str__(fingerprint)
    raise OptionError(
        f"fingerprint={fingerprint!r} {given}; it is a string without NUL and lone surrogates, or a function that returns one"
    )


# -- results --------------------------------------------------------------------------------------------------------

TEXT, BYTES = "T", "B"
"""How a stored result was given: as ``str`` or as ``bytes``."""


def dumped(result: Any, codec: Codec | None, key: str) -> tuple[str, bytes]:
    """Return how a result was given, and the bytes to store.

    Raises:
        OnceResult: the next caller would not get the same.
    """
    if codec is None:
        return TEXT, _json_of(result, key).encode()
    stored: Any = codec[0](result)
    if isinstance(stored, str):
        return TEXT, stored.encode(errors="surrogatepass")
    if isinstance(stored, bytes):
        return BYTES, bytes(stored)
    raise OnceResult(
        f"the first function of codec= returned a {type(stored).__name__} for the result of the unit with the key {key!r}; "
        "it returns str or bytes"
    )


def loaded(state: str, stored: bytes, codec: Codec | None) -> Any:
    """Return the result that was stored."""
    given = stored if state == BYTES else stored.decode(errors="surrogatepass")
    return json.loads(given) if codec is None else codec[1](given)


def _json_of(result: Any, key: str) -> str:
    try:
        text = json.dumps(result)
        if _same(json.loads(text), result):
            return text
        why = "it would come back as something else"
    except (TypeError, ValueError, RecursionError) as error:
        why = describe(error)
    raise OnceResult(
        f"the unit with the key {key!r} returned {_shown(result)}, which JSON cannot keep ({why}), so nothing was "
        "committed; return None, str, bool, int, float, or lists and dicts of these, or give codec=(dumps, loads)"
    )


def _shown(result: Any) -> str:
    text = repr(result)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _same(one: Any, other: Any) -> bool:
    """Tell whether two values are equal and of the same built-in types, all the way down."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return _same(list(one.items()), list(other.items()))
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
