"""Optimistic concurrency: a version column on each row, which every UPDATE and DELETE checks.

Four classes to inherit (`Versioned`, `TimestampVersioned`, `UUIDVersioned`, `XminVersioned`), and functions for their
objects. The functions work in any SQLAlchemy session, sync or async; none of them begins or commits a transaction, or waits.

=================  ====================================================================================
``_kinds``         the kinds of version: values, the next value, their SQL
``_classes``       the classes, and the errors for misuse of the version attribute
``_rows``          what is known of a row without asking the database
``_write``         mapper events: expected, forced and missing versions, just before SQLAlchemy writes the row
``_parents``       ``__version_parents__``
``_attempt``       which rows of a flush or bulk statement did not match
``_conflict``      the conflicts: reading the rows again, carrying changes over
``_reach``         which flushes may write a versioned row at all
``_notes``         what a session remembers about its transaction
``_flush``         session events: they tie all of this together, in the order that is drawn there
``_functions``     the functions for objects and statements; ``_etag`` has those for HTTP
``_session``       for sessionkit's Session: the methods for which SQLAlchemy has no event
``_arming``        adds the session events, once the first versioned class is mapped
=================  ====================================================================================

`kind_of`, `kind_of_column`, `was_taken_over`, `VersionKind`, `server_now` and `telling_time` are for other parts of the
package (bulk, Alembic), not for users.
"""

from .._stale import StaleAware as VersionAware
from ..errors import Conflict, Policy, PolicyName
from . import _arming as _arming  # listens for the first versioned class
from ._classes import TimestampVersioned, UUIDVersioned, Versioned, XminVersioned
from ._classes import kind_of_column as kind_of_column  # for migrations
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
