"""Expires the session's objects whose rows a bulk call has written, so that their next use refreshes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.orm.attributes import instance_state

from ._equality import fold_value

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy.orm import Session

    from ._plan import MappingPlan, Slot

    Key = tuple[Any, ...]


def expire(session: Session, plan: MappingPlan, slots: Sequence[Slot], keys: Iterable[Key]) -> None:
    """Expire the objects whose attributes `slots` hold one of the values `keys`; when in doubt, expire.

    Changes of an object that are not flushed yet stay.
    """
    cls = plan.mapper.base_mapper.class_
    objects = [obj for obj in session.identity_map.values() if isinstance(obj, cls)]
    if not objects:
        return
    touched = {tuple(map(fold_value, key)) for key in keys}
    kinds = {tuple(map(type, key)) for key in touched}
    names = [slot.label for slot in slots]
    for obj in objects:
        state = instance_state(obj)
        held = state.dict
        key = tuple(fold_value(held.get(name)) for name in names)
        # Values may be equal to the database but not to Python: different types (5 and "5"), case, padding.
        known = all(name in held for name in names) and tuple(map(type, key)) in kinds
        if known and key not in touched:
            continue
        changed = state.committed_state.keys()
        if changed:
            session.expire(obj, [prop.key for prop in state.mapper.attrs if prop.key not in changed])
        else:
            session.expire(obj)
