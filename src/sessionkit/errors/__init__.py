"""Every exception of sessionkit.

::

    SessionKitError
    ├── ScopeError                  a scope, or a session inside one, was used in a way that is not allowed
    │   ├── NoCurrentSession        no scope is open here (LookupError)
    │   ├── ConcurrentUse           two threads or tasks used one session at the same time
    │   ├── SyncAsyncMismatch       an async factory in `with`, or a sync one in `async with` (TypeError)
    │   ├── CommitTokenError        the value is not a commit token, or belongs to another cluster (ValueError)
    │   └── NoReader                no reader could serve a read-only scope
    ├── OptionError                 an option has a value that cannot be honoured here
    │   ├── SettingRequired         a scope or session lacks a setting that its factory requires
    │   └── UnknownOptionError      there is no option of that name
    ├── LockError                   this kind of lock is not available here
    │   └── NotLocked               another transaction holds it (also whatever SQLAlchemy would have raised)
    ├── OnceMismatch                a key of once= came with other arguments
    ├── OnceResult                  a result that cannot be stored for the next caller (TypeError)
    ├── BulkError                   a row of a bulk call was refused (also whatever SQLAlchemy would have raised)
    ├── VersionError                a versioning function was used in a way that is not allowed
    │   └── MalformedETag           a header is not a valid If-Match (ValueError)
    ├── VersionConflict             somebody else has changed or deleted the rows (sqlalchemy.orm.exc.StaleDataError)
    ├── UnexpectedRollback          the scope ended without an exception, but nothing could be committed
    ├── CommitOutcomeUnknown        the connection was lost during COMMIT, which may or may not have taken effect
    ├── PartialCommit               a unit on several databases committed on some of them only
    └── HookError                   on_commit or on_rollback callables failed, after the transaction had ended

    ManualCommit                    a warning: commit() inside a scope is durable only at the scope's end (UserWarning)
    StaleRead                       a warning: a locking read returned an object with the values read before (UserWarning)

A driver's error is never wrapped: it reaches the caller as SQLAlchemy raised it.

``str(error)`` is the message, followed by a line with the address of its section in the documentation.
``error.args[0]`` is the message alone.
"""

import warnings
from types import FunctionType

# `X as X`: for the other modules of the package, not for users.
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
from ._once import OnceMismatch, OnceResult
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
    SettingRequired,
    StaleRead,
    SyncAsyncMismatch,
    UnknownOptionError,
    VersionError,
)
from ._violation import Violation, violation

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
    "OnceMismatch",
    "OnceResult",
    "OptionError",
    "Outcome",
    "PartialCommit",
    "ScopeError",
    "SessionKitError",
    "SettingRequired",
    "StaleRead",
    "SyncAsyncMismatch",
    "UnexpectedRollback",
    "UnknownOptionError",
    "VersionConflict",
    "VersionError",
    "Violation",
    "classify",
    "outcome_of",
    "violation",
]

# Tracebacks and pickles name each of them as users import it, not by the file it is defined in.
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
