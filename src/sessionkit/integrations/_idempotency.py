"""``idempotency_header=``: a request that a client may send again is served once, and its response is given again.

The key of the header is claimed in the request's own transaction, as that of a unit with ``once=`` is, and the response is
stored with it. See the draft of the IETF, https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from .._spi import REQUEST, WEEK, Once, check_ttl
from ..errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

Caller = Callable[[Any], str | None]
"""Tells of a request who sends it: a caller never gets the response to another one's request."""

LONGEST_KEPT = 16 * 2**20
"""The longest body of a request with a key, in bytes; it is read before the request is served."""

LONGEST_KEY = 255


class Answer(NamedTuple):
    """A response to an error that the application did not handle.

    Attributes:
        retry_after: what it asks of the client, in seconds; None: nothing.
    """

    status: int
    reason: str
    text: str
    retry_after: int | None = None

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers that belong to the status."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


BAD_KEY = Answer(
    400,
    "Bad Request",
    f"The idempotency key must be one string of 1 to {LONGEST_KEY} printable ASCII characters, with or without double quotes.",
)
NO_LENGTH = Answer(411, "Length Required", "A request with an idempotency key must say how long its body is.")
TOO_LARGE = Answer(
    413,
    "Content Too Large",
    f"The body of a request with an idempotency key may have {LONGEST_KEPT:,} bytes at the most.",
)
OTHER_REQUEST = Answer(
    422, "Unprocessable Content", "This idempotency key was used before with another request. Take a new key."
)
IN_FLIGHT = Answer(
    409,
    "Conflict",
    "A request with this idempotency key is being served. Wait, then send it again with the same key.",
    1,
)


class KeyRefused(Exception):
    """A request with a key is not served."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.text)
        self.answer = answer


class Replayed(Exception):
    """The response to a request is stored, so that what serves it must not run."""


@dataclass(frozen=True, slots=True)
class Idempotency:
    """What an integration was asked for, checked."""

    header: str
    methods: frozenset[str]
    wait: float
    ttl: float
    caller: Caller

    def key_of(self, values: Sequence[str], seen: Callable[[], Any]) -> str | None:
        """Return under which key a request is stored; None: it has no key, or no caller.

        Args:
            values: of the header, each time that it was sent.
            seen: returns what the function `caller` gets; called only if the request has a key.

        Raises:
            KeyRefused: the header holds no key.
            OptionError: `caller` returned something else than a string.
        """
        if not values:
            return None
        key = _parsed(values)
        who: Any = self.caller(seen())
        if who is None:
            return None
        if not isinstance(who, str) or not who:
            if inspect.iscoroutine(who):
                who.close()
            raise OptionError(
                f"the function of idempotency_caller= returned {who!r}; it returns a string that tells who sends the request, or "
                "None for a request that is served without its key"
            )
        return sha256(json.dumps([who, key]).encode()).hexdigest()

    def once(self, key: str, method: str, target: str, body: bytes) -> Once:
        """Return how the request with a key is claimed."""
        fingerprint = sha256(json.dumps([method, target, sha256(body).hexdigest()]).encode()).hexdigest()
        return Once(key, fingerprint, CODEC, self.ttl, True, self.wait, REQUEST)


_BARE = re.compile(r"[!-~]+")
_QUOTED = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"')  # RFC 9651, section 4.2.5


def _parsed(values: Sequence[str]) -> str:
    value = values[0].strip(" \t")
    quoted = _QUOTED.fullmatch(value)
    key = value if quoted is None else re.sub(r"\\(.)", r"\1", quoted[1])
    bare = quoted is not None or (_BARE.fullmatch(value) is not None and '"' not in value)
    if len(values) > 1 or not bare or not 0 < len(key) <= LONGEST_KEY:
        raise KeyRefused(BAD_KEY)
    return key


def idempotency_of(
    where: str, header: Any, methods: Iterable[str], wait: Any, ttl: Any, caller: Any
) -> Idempotency | None:
    """Check the options of an integration.

    Raises:
        OptionError: one of them has a value that cannot be honoured.
    """
    if header is None:
        if caller is not None or ttl is not None or tuple(methods) != METHODS or wait != WAIT:
            raise OptionError(
                f"idempotency_caller=, idempotency_methods=, idempotency_wait= or idempotency_ttl= was given to {where} without "
                "idempotency_header=, so no request would be stored"
            )
        return None
    if not isinstance(header, str) or re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", header) is None:
        raise OptionError(
            f"idempotency_header={header!r} was given to {where}; it is the name of a header, such as 'Idempotency-Key'"
        )
    if isinstance(methods, str):
        raise OptionError(
            f"idempotency_methods={methods!r} was given to {where}; it is a set, such as {{'POST', 'PATCH'}}"
        )
    if caller is None:
        raise OptionError(
            f"idempotency_header={header!r} was given to {where} without idempotency_caller=, a function of the request that "
            "tells who sends it: without it one client could read the response to another one's request"
        )
    if not callable(caller) or inspect.iscoroutinefunction(caller):
        raise OptionError(
            f"idempotency_caller={caller!r} was given to {where}; it is a function of a request, and not async"
        )
    if isinstance(wait, bool) or not isinstance(wait, int | float) or not 0 <= wait < float("inf"):
        raise OptionError(f"idempotency_wait={wait!r} was given to {where}; it is a number of seconds, 0 or more")
    seconds = WEEK if ttl is None else check_ttl(ttl, f"idempotency_ttl={ttl!r} was given to {where}")
    return Idempotency(
        header, frozenset(method.upper() for method in methods), float(wait), seconds, cast("Caller", caller)
    )


METHODS = ("POST",)
WAIT = 10.0


# -- responses ------------------------------------------------------------------------------------------------------


class Stored(NamedTuple):
    """A response as it is stored."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


_NOT_STORED = frozenset(
    {
        # of the connection, RFC 9110, section 7.6.1
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        # of the moment, the server and the session
        "date",
        "server",
        "set-cookie",
        "set-cookie2",
        "www-authenticate",
        "proxy-authenticate",
        "authentication-info",
        "proxy-authentication-info",
        "content-length",  # of the body, when it is sent
    }
)


def stored(status: int, headers: Iterable[tuple[str, str]], body: bytes) -> Stored:
    """Return a response with those of its headers that another client's connection may see later."""
    return Stored(status, [(name, value) for name, value in headers if name.lower() not in _NOT_STORED], body)


def length_of(response: Stored) -> list[tuple[str, str]]:
    """Return the header that says how long the body of a response is, where it has one."""
    bodiless = response.status < 200 or response.status in (204, 304)
    return [] if bodiless else [("content-length", str(len(response.body)))]


def _pack(response: Stored) -> bytes:
    return json.dumps([response.status, response.headers]).encode() + b"\n" + response.body


def _unpack(data: bytes) -> Stored:
    head, _, body = data.partition(b"\n")
    status, headers = json.loads(head)
    return Stored(status, [(name, value) for name, value in headers], body)


CODEC = (_pack, _unpack)

STREAM = (
    "a streamed response cannot be stored for a request with an idempotency key, since its end is not known when the request "
    "commits; return it whole or with a Content-Length, or leave the method out of idempotency_methods"
)
