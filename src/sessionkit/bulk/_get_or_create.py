"""`get_or_create`: the row with a unique key, which is inserted if it is not there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import ClauseElement, inspect, select, type_coerce
from sqlalchemy.exc import NoResultFound

from ..errors import OptionError
from ._plan import plan_for
from ._unique import require
from ._upsert import upsert

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy.orm import Session

    from ._plan import MappingPlan, Slot

T = TypeVar("T")

_ROUNDS = 10
"""How often a row that others insert and delete all the time is looked for, before that is an error."""


def get_or_create(
    session: Session, entity: type[T], key: Mapping[Any, Any], *, defaults: Mapping[Any, Any] | None = None
) -> tuple[T, bool]:
    """Return the object with this unique key, and whether this call inserted its row; the transaction stays open.

    No race and no failed transaction: if two transactions ask for the same new key at the same time, the second one waits
    for the first, and then returns its row. The session is flushed first, so an object that was added with this key is found;
    one that is loaded already is refreshed.

    Args:
        session: the session in whose transaction this happens, and to which the object belongs.
        entity: the mapped class; one table, no joined inheritance.
        key: attribute to value, for exactly the attributes of one unique constraint, unique index or primary key. A value
            may be a SQL expression, which is evaluated first, but not None: the key is looked up with ``=``.
        defaults: further attributes of a new row, as values or SQL expressions. A row that exists is left as it is. What the
            mapping has as default, type and first version applies as in `insert`; ``__init__`` and mapper events do not run.

    Returns:
        The object, attached to the session with the values that are in the database, and True if its row is new.

    Raises:
        OptionError: no unique key covers `key`, `key` holds None, or `defaults` names one of its attributes. No SQL was sent.
        BulkError: the new row breaks another constraint; it is an ``IntegrityError`` too. Nothing was inserted, and the session
            can go on.
        NoResultFound: the row exists, but the session cannot see it: it belongs to another class of the table, or
            ``with_loader_criteria`` or row-level security hides it.
        DBAPIError: above READ COMMITTED, a serialization failure (40001) where another transaction has inserted the row since
            this one began: `retry` runs the unit again.

    SQL: ``SELECT ... WHERE name = ...``. Without a row: ``SAVEPOINT``, ``INSERT ... ON CONFLICT (name) DO NOTHING``,
    ``RELEASE SAVEPOINT``, and the ``SELECT`` again.
    """
    plan = plan_for(entity)
    if plan.table is None:
        raise OptionError(
            f"get_or_create() works on one table, and {plan.name} has several (joined inheritance); look for the row with a "
            "lock on its parent, or insert it in a scope with propagation='savepoint' and look for it if that fails"
        )
    found = _named(plan, key, "key")
    new = _named(plan, defaults or {}, "defaults")
    _check(session, plan, found, new)
    session.flush()
    # Evaluated once: a function that gives another value each time is looked for and inserted with the same one.
    found = {slot: _value(session, slot, value) for slot, value in found.items()}
    where = [
        getattr(entity, plan.mapper.get_property_by_column(slot.column).key) == value for slot, value in found.items()
    ]
    statement = select(entity).where(*where).execution_options(populate_existing=True)
    row = {slot.label: value for slot, value in (*found.items(), *new.items())}
    created = False
    for _ in range(_ROUNDS):
        there: Any = session.scalars(statement).unique().one_or_none()
        if there is not None:
            return there, created
        if created:
            break
        result = upsert(session, entity, [row], match=[slot.label for slot in found], update=[])
        created = result.inserted == 1
    what = ", ".join(f"{slot.label}={value!r}" for slot, value in found.items())
    if created:
        raise NoResultFound(
            f"get_or_create() has inserted {plan.name} with {what}, and does not find it by that key: the database stores the "
            "key in another form (it rounds it, or a trigger changes it), or with_loader_criteria or row-level security hides "
            "the row. Give the key as it is stored; and roll back, or the row stays"
        )
    raise NoResultFound(
        f"get_or_create() was asked for {plan.name} with {what}; its row exists, but this session cannot see it: it is of "
        "another class, or with_loader_criteria or row-level security hides it. Ask for its class, or without the filter"
    )


def _named(plan: MappingPlan, given: Mapping[Any, Any], option: str) -> dict[Slot, Any]:
    if not hasattr(given, "items"):
        raise OptionError(
            f"get_or_create() was given {given!r} as {option}; give a mapping: {{{plan.name}.name: value}}"
        )
    return {plan.slot_for(attribute, option): value for attribute, value in given.items()}


def _value(session: Session, slot: Slot, value: Any) -> Any:
    if not hasattr(value, "__clause_element__") and not isinstance(value, ClauseElement):
        return value
    answer = session.scalar(select(type_coerce(value, slot.column.type)))
    if answer is None:
        raise _null(slot)
    return answer


def _null(slot: Slot) -> OptionError:
    return OptionError(
        f"get_or_create() was given None for {slot.label!r}; the key is looked up with =, which NULL never is. Give it a "
        "value, or look for the row with a condition of your own"
    )


def _check(session: Session, plan: MappingPlan, key: dict[Slot, Any], defaults: dict[Slot, Any]) -> None:
    for slot, value in key.items():
        if value is None:
            raise _null(slot)
        if slot in defaults:
            raise OptionError(
                f"get_or_create() was given {slot.label!r} in key and in defaults; it belongs in key alone"
            )
    dialect = session.get_bind(inspect(plan.mapper)).dialect
    assert plan.table is not None
    require(plan, plan.table, key, dialect)
