"""Every exception of sessionkit.

::

    SessionKitError
    ├── ScopeError                  a scope was asked for something it must not do
    │   ├── NoCurrentSession        there is no scope here (LookupError)
    │   ├── ConcurrentUse           two threads or tasks inside one session at once
    │   ├── SyncAsyncMismatch             an async factory in `with`, a sync one in `async with` (TypeError)
    │   ├── CommitTokenError        the value is no commit token, or one of another cluster (ValueError)
    │   └── NoReader                no reader could serve a read-only scope
    ├── OptionError                 an option has a value that cannot be honoured here
    │   └── UnknownOptionError      an option of that name does not exist
    ├── LockError                   a lock was asked for that cannot be had here
    │   └── NotLocked               somebody else holds it (and whatever SQLAlchemy would have raised)
    ├── BulkError                   a row of a bulk call was refused (and whatever SQLAlchemy would have raised)
    ├── VersionError                a version was asked for what it cannot do
    │   └── MalformedETag           a header is no If-Match (ValueError)
    ├── VersionConflict             somebody else has changed or deleted the rows (sqlalchemy.orm.exc.StaleDataError)
    ├── UnexpectedRollback          the scope ended without an exception, yet nothing could be committed
    ├── CommitOutcomeUnknown        the connection was lost during COMMIT, which may have taken effect or not
    ├── PartialCommit               of several databases that do not commit as one, not all have committed
    └── HookError                   on_commit or on_rollback callables failed; the transaction is settled

    ManualCommit                    a warning: commit() by hand inside a scope is durable at its end only (UserWarning)
    StaleRead                       a warning: a locking read handed back an object as it was read before (UserWarning)

A driver's error is never wrapped: it reaches the caller as SQLAlchemy raised it.

``str(error)`` is the message and, on a line of its own, the address of what the documentation says about it.
``error.args[0]`` is the message alone.
"""

import warnings
from types import FunctionType

# `X as X`: for the package's other rooms, and not for users.
from ._base import DOCUMENTATION as DOCUMENTATION
from ._base import SessionKitError
from ._base import add_note as add_note
from ._base import address_of as address_of
from ._base import describe as describe
from ._base import message_of as message_of
from ._bulk import BulkError
from ._bulk import without_frames as without_frames
from ._classify import KINDS as KINDS
from ._classify import Classification, classify
from ._classify import is_aftermath as is_aftermath
from ._classify import is_lost as is_lost
from ._conflicts import Conflict as Conflict
from ._conflicts import Identity as Identity
from ._conflicts import Policy as Policy
from ._conflicts import PolicyName as PolicyName
from ._conflicts import row_name as row_name
from ._locks import Holder, LockError, NotLocked
from ._marks import Outcome, outcome_of
from ._marks import first_of as first_of
from ._marks import set_first as set_first
from ._marks import set_outcome as set_outcome
from ._runtime import (
    CommitOutcomeUnknown,
    CommitTokenError,
    HookError,
    MalformedETag,
    NoReader,
    PartialCommit,
    UnexpectedRollback,
    VersionConflict,
)
from ._usage import (
    ConcurrentUse,
    ManualCommit,
    NoCurrentSession,
    OptionError,
    ScopeError,
    StaleRead,
    SyncAsyncMismatch,
    UnknownOptionError,
    VersionError,
)

__all__ = [
    "BulkError",
    "Classification",
    "CommitOutcomeUnknown",
    "CommitTokenError",
    "ConcurrentUse",
    "Holder",
    "HookError",
    "LockError",
    "MalformedETag",
    "ManualCommit",
    "NoCurrentSession",
    "NoReader",
    "NotLocked",
    "OptionError",
    "Outcome",
    "PartialCommit",
    "ScopeError",
    "SessionKitError",
    "StaleRead",
    "SyncAsyncMismatch",
    "UnexpectedRollback",
    "UnknownOptionError",
    "VersionConflict",
    "VersionError",
    "classify",
    "outcome_of",
]

# In which file each of them stands is our affair: tracebacks and pickles name them as users import them.
for _name in __all__:
    if isinstance(_value := globals()[_name], type | FunctionType):
        _value.__module__ = __name__


def __getattr__(name: str) -> object:
    if name == "ColourError":
        # The name until 0.1; it goes with the next release.
        warnings.warn(
            "sessionkit.errors.ColourError is called SyncAsyncMismatch now; the old name will be removed",
            DeprecationWarning,
            stacklevel=2,
        )
        return SyncAsyncMismatch
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
