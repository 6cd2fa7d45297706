"""The module that Alembic loads, through its ``alembic.plugins`` entry point or an ``import`` in an env.py.

The plugin's name is in the namespace that autogenerate uses by default: without the plugin, a model that became versioned
would yield a migration that fails on the first table with rows. ``autogenerate_plugins=["alembic.autogenerate.*",
"~alembic.autogenerate.sessionkit"]`` excludes it; the operations remain available.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from . import _row_security, autogenerate
from .operations import register

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext
    from alembic.operations.ops import UpgradeOps
    from alembic.runtime.plugins import Plugin
    from alembic.util import PriorityDispatchResult

NAME = "alembic.autogenerate.sessionkit"

_done: list[str] = []


def setup(plugin: Plugin) -> None:
    """Register the operations and the autogenerate hook. Alembic calls this once, when it is imported."""
    from alembic.util import DispatchPriority

    _done.append(plugin.name)
    _register()
    plugin.add_autogenerate_comparator(_compare, "schema", "sessionkit", priority=DispatchPriority.LAST)


def _register() -> None:
    register()
    _row_security.register()
    autogenerate.register()
    _row_security.register_rendering()


def _compared(context: AutogenContext, upgrade_ops: UpgradeOps, schemas: Any) -> None:
    autogenerate.use_version_operations(context, upgrade_ops, schemas)
    _row_security.compare(context, upgrade_ops)


def _compare(context: AutogenContext, upgrade_ops: UpgradeOps, schemas: Any) -> PriorityDispatchResult:
    from alembic.util import PriorityDispatchResult

    _compared(context, upgrade_ops, schemas)
    return PriorityDispatchResult.CONTINUE


def set_up_once() -> None:
    """Do the same if Alembic has not: it is older than 1.18, or sessionkit is only on the path and not installed."""
    if _done:
        return
    try:
        from alembic.runtime.plugins import Plugin
    except ImportError:
        from alembic.autogenerate import comparators

        _done.append(NAME)
        _register()
        # It comes after Alembic's own, which are there already.
        comparators.dispatch_for("schema")(_compared)
    else:
        Plugin.setup_plugin_from_module(sys.modules[__name__], NAME)
