"""`json.dumps` for many small documents."""

from __future__ import annotations

import json
from json import encoder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Dialect


def dumps_of(dialect: Dialect) -> Callable[[Any], str]:
    """Return the function that serializes a document for a dialect: the engine's own, or the standard library's."""
    own: Callable[[Any], str] | None = getattr(dialect, "_json_serializer", None)
    return own or dumps


def _made_once() -> Callable[[Any], str] | None:
    # json.dumps makes a new C encoder for each document, which takes three times as long as encoding a small one.
    # Without the first argument the encoder does not check for cycles: those end in a RecursionError, and then the path
    # through SQLAlchemy reports them.
    make: Any = getattr(encoder, "c_make_encoder", None)
    quote: Any = getattr(encoder, "c_encode_basestring_ascii", None)
    try:
        encode = make(None, json.JSONEncoder().default, quote, None, ": ", ", ", False, False, True)
        if "".join(encode(_SAMPLE, 0)) != json.dumps(_SAMPLE):
            return None
    except TypeError:  # another implementation of Python
        return None
    join = "".join
    return lambda document: join(encode(document, 0))


_SAMPLE: Any = {"ü": [1, 2.5, None, True, "\n"], "b": {}, "c": float("nan")}

dumps: Callable[[Any], str] = _made_once() or json.dumps
