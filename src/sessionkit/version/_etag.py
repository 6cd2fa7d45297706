"""Versions as entity tags, for HTTP: RFC 9110, sections 8.8.3 and 13.1.1."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ..errors import Conflict, MalformedETag, VersionConflict
from ._conflict import Conflicts
from ._functions import expect_version, version_of
from ._rows import stored

if TYPE_CHECKING:
    from ._classes import Base

# entity-tag = [ weak ] opaque-tag; weak = %s"W/"; opaque-tag = DQUOTE *etagc DQUOTE;
# etagc = %x21 / %x23-7E / obs-text (%x80-FF). A comma is an etagc too, so a list cannot be split at its commas.
_TAG = re.compile(r'(W/)?"([\x21\x23-\x7e\x80-\xff]*)"')
_LIST = re.compile(rf"[ \t,]*{_TAG.pattern}(?:[ \t]*,(?:[ \t,]*{_TAG.pattern})?)*[ \t]*")


def etag(obj: Base) -> str:
    """Return the strong entity tag of an object's version, with its quotes, as an ETag header has it: ``'"3"'``.

    It is strong in the sense of RFC 9110, section 8.8.1, if the representation is made of this row and of what bumps
    it (`bump_version`, ``__version_parents__``), and of nothing else.

    Raises:
        VersionError: the object is not versioned, or was never flushed.
    """
    _, kind = stored(obj, "etag()")
    return f'"{kind.text(version_of(obj))}"'


def expect_etag(obj: Base, header: str) -> None:
    """Have the flush write an object only if its row is one that an If-Match header names.

    One tag, or the one of several that the object was read with, becomes what the WHERE compares, as `expect_version`
    does it: so a row that changes between this call and the flush is found as well. ``*`` asks for a row that exists,
    and the version that was read is compared as always. Tags are compared strongly: a weak one never matches.

    Args:
        obj: a versioned object that is in the database.
        header: the value of If-Match. A request without one has no precondition: then do not call this, or answer
            428 (RFC 6585).

    Raises:
        VersionConflict: no tag can match; this is the 412 of RFC 9110, section 13.1.1, and so is that of the flush.
        MalformedETag: the header is no If-Match; the answer is 400.
        VersionError: the object is not versioned, or was never flushed.
    """
    state, kind = stored(obj, "expect_etag()")
    given: Any = header
    if not isinstance(given, str):
        raise MalformedETag(
            f"If-Match is {header!r}: a request without the header has no precondition, so answer 428 Precondition "
            "Required, or write without expect_etag()"
        )
    if header.strip(" \t") == "*":
        return
    if _LIST.fullmatch(header) is None:
        raise MalformedETag(
            f'If-Match is {header!r}; it should be * or entity tags in double quotes, separated by commas: "3", "4"'
        )
    current = version_of(obj)
    versions: list[Any] = []
    for weak, text in _TAG.findall(header):
        try:
            version = kind.parse(text)
        except ValueError:
            continue  # a tag of somebody else's making
        # Tags are equal character by character (section 8.8.3.2), so one that only means the same is another.
        if not weak and kind.text(version) == text:
            versions.append(version)
    if current in versions:
        expect_version(obj, current)
    elif len(versions) == 1:
        expect_version(obj, versions[0])
    else:
        conflict = Conflict(
            state.mapper.class_, state.identity or (), versions or header, current=current, deleted=False
        )
        raise VersionConflict(Conflicts.of([conflict]))
