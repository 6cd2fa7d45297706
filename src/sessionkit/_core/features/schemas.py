"""``schema_translate_map``: the unit's tables have other schemas in the database.

Presets derive an engine each; here there may be thousands of tenants, and a factory would keep an engine for each of them.
"""

from __future__ import annotations

from typing import Any

from ..._schemas import OPTION, translate
from .base import Feature


class TranslatedSchemas(Feature):
    """Makes everything that the session sends, flushes included, use the schema names that the unit asked for."""

    def __init__(self, unit: Any) -> None:
        super().__init__(unit)
        translate(unit.session, unit.request.schemas)


__all__ = ["OPTION", "TranslatedSchemas"]
