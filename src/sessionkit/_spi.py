"""The private parts that the integrations and the command line may use. No promise to anybody else."""

from __future__ import annotations

from . import _dialects
from ._bridge import to_completion
from ._claims import REQUEST
from ._core import seams
from ._core.connection import ScopeConnection, connect, engine_that_begins
from ._core.features.settings import set_at_begin
from ._core.hooks import Hook, captures, refuse_awaitable
from ._core.joined import Joined
from ._core.savepoints import connections
from ._core.session import ScopeAware, answer_by_overrides, aware_class, tell_made, unit_of
from ._core.unit import Unit, bound_engines
from ._database_copy import DatabaseCopy, copies, engines_of
from ._dialects import Position, is_autocommit, root_of
from ._factory_info import FactoryInfo
from ._observers import Observation, Observer, observers, tell_retried
from ._once import WEEK, Once, check_ttl
from ._plan import ManualCommit, Options, Request, check_once
from ._settings import InForce, Role, Settings, takes_one, why_unknown
from ._waiting import pause, skipping, sleep
from .context import Entry, State, current_of, describe, factory_key, here, pop, sync_session_of, top
from .isolation import NOTHING_ASKED, PRESET_FIELDS
from .retry import Attempts, Run, as_retry

__all__ = [
    "NOTHING_ASKED",
    "PRESET_FIELDS",
    "REQUEST",
    "WEEK",
    "Attempts",
    "DatabaseCopy",
    "Entry",
    "FactoryInfo",
    "Hook",
    "InForce",
    "Joined",
    "ManualCommit",
    "Observation",
    "Observer",
    "Once",
    "Options",
    "Position",
    "Request",
    "Role",
    "Run",
    "ScopeAware",
    "ScopeConnection",
    "Settings",
    "State",
    "Unit",
    "_dialects",
    "answer_by_overrides",
    "as_retry",
    "aware_class",
    "bound_engines",
    "captures",
    "check_once",
    "check_ttl",
    "connect",
    "connections",
    "copies",
    "current_of",
    "describe",
    "engine_that_begins",
    "engines_of",
    "factory_key",
    "here",
    "is_autocommit",
    "observers",
    "pause",
    "pop",
    "refuse_awaitable",
    "root_of",
    "seams",
    "set_at_begin",
    "skipping",
    "sleep",
    "sync_session_of",
    "takes_one",
    "tell_made",
    "tell_retried",
    "to_completion",
    "top",
    "unit_of",
    "why_unknown",
]
