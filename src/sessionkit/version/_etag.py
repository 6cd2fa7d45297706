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
    """Return the strong entity tag of an object's version, in quotes, ready for an ETag header: ``'"3"'``.

    It is strong in the sense of RFC 9110, section 8.8.1, if the representation depends only on this row and on what bumps its
    version (`bump_version`, ``__version_parents__``).

    Raises:
        VersionError: the object is not versioned, or was never flushed.
    """
    _, kind = stored(obj, "etag()")
    return f'"{kind.text(version_of(obj))}"'


def expect_etag(obj: Base, header: str) -> None:
    """Let the flush write an object only if an If-Match header names the version of its row.

    The WHERE then compares the tag, as with `expect_version`; if the header has several, the one that the object was read
    with. So a row that changes between this call and the flush is found too. ``*`` means that the row must exist; the version
    that was read is compared as always. The comparison is strong: a weak tag never matches.

    Args:
        obj: a versioned object that is in the database.
        header: the value of If-Match. A request without the header has no precondition: do not call this, or answer 428 (RFC
            6585).

    Raises:
        VersionConflict: no tag can match. Answer this, and the conflict of the flush, with 412 (RFC 9110, section 13.1.1).
        MalformedETag: the header is not a valid If-Match. Answer 400.
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
            f'If-Match is {header!r}; it must be * or entity tags in double quotes, separated by commas: "3", "4"'
        )
    current = version_of(obj)
    versions: list[Any] = []
    for weak, text in _TAG.findall(header):
        try:
            version = kind.parse(text)
        except ValueError:
            continue  # not a tag that etag() has made
        # Tags are compared character by character (section 8.8.3.2): one that only means the same is a different tag.
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
