"""Optimistic concurrency: versions that no update slips past.

Four classes to inherit (`Versioned`, `TimestampVersioned`, `UUIDVersioned`, `XminVersioned`), and functions that work
on their objects in any SQLAlchemy session, sync or async: none of them opens, commits or waits.

=================  ====================================================================================
``_kinds``         what a version can be: values, their next ones, their SQL
``_classes``       the classes, and what is refused of the attribute
``_rows``          what is known of a row without asking the database
``_write``         mapper events: expected, forced and missing versions, just before the row is written
``_parents``       ``__version_parents__``
``_attempt``       which rows of a flush or bulk statement did not match
``_conflict``      their conflicts: how they are read again, and how changes are carried over
``_reach``         which flushes may write a versioned row at all
``_notes``         what a session remembers of its transaction
``_flush``         session events, which bring all of that together, and the order in which things run
``_functions``     the functions on objects and statements; ``_etag`` those for HTTP
``_session``       for sessionkit's Session: the methods around which SQLAlchemy has no event
``_arming``        adds the session events, once the first versioned class is mapped
=================  ====================================================================================

`kind_of`, `kind_of_column`, `was_taken_over`, `VersionKind`, `server_now` and `telling_time` are for the package's own rooms
(bulk, Alembic), and not for users.
"""

from .._stale import StaleAware as VersionAware
from ..errors import Conflict, Policy, PolicyName
from . import _arming as _arming  # which hears of the first versioned class
from ._classes import TimestampVersioned, UUIDVersioned, Versioned, XminVersioned
from ._classes import kind_of_column as kind_of_column  # for who migrates it
from ._classes import was_taken_over as was_taken_over
from ._conflict import Conflicts
from ._etag import etag, expect_etag
from ._functions import bump_version, expect_version, update_versioned, version_of
from ._kinds import VersionKind as VersionKind
from ._kinds import server_now as server_now
from ._kinds import telling_time as telling_time
from ._rows import kind_of as kind_of

__all__ = [
    "Conflict",
    "Conflicts",
    "Policy",
    "PolicyName",
    "TimestampVersioned",
    "UUIDVersioned",
    "VersionAware",
    "Versioned",
    "XminVersioned",
    "bump_version",
    "etag",
    "expect_etag",
    "expect_version",
    "update_versioned",
    "version_of",
]
