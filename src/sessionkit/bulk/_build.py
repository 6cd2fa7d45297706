"""Generated functions that turn mappings into the tuples of a page: one list comprehension for each shape of row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ._defaults import row_by_row
from ._page import Cell
from ._plan import OMIT, Composite, MappingPlan, Slot, Supply
from ._statements import tables_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ._defaults import DefaultContext

_MISSING = object()


class Builder(NamedTuple):
    """The cells of the tuples, the function that makes them, and the cells that can hold OMIT.

    Attributes:
        plain: the keys of the rows if the tuples are just their values; otherwise empty.
    """

    cells: tuple[Cell, ...]
    build: Callable[[list[Mapping[str, Any]], DefaultContext], list[tuple[Any, ...]]]
    may_omit: tuple[int, ...]
    plain: tuple[str, ...]


class _Code:
    """An expression for each cell; ``r`` is the row."""

    def __init__(self, plan: MappingPlan, uniform: bool, *, in_context: bool = False) -> None:
        self.plan = plan
        self.uniform = uniform
        self.names: dict[str, Any] = {"OMIT": OMIT, "M": _MISSING}
        self.cells: list[Cell] = []
        self.parts: list[str] = []
        self._in_context = in_context
        self._later: dict[int, Callable[[Any], Any]] = {}

    def name(self, value: Any) -> str:
        name = f"n{len(self.names)}"
        self.names[name] = value
        return name

    def add(self, cell: Cell, expression: str) -> None:
        self.cells.append(cell)
        self.parts.append(expression)

    def supplied(self, slot: Slot, supply: Supply) -> str:
        """Return an expression for the value of the next cell if the row has none."""
        if supply.kind in {"constant", "call", "context"}:
            if self._in_context:
                self._later[len(self.cells)] = (lambda _: supply.value) if supply.kind == "constant" else supply.value
                return "D"
            return self.name(supply.value) if supply.kind == "constant" else f"{self.name(supply.value)}(X)"
        return "OMIT" if supply.kind == "database" or slot.none_is_value else "None"

    def given(self, keys: frozenset[str]) -> dict[Slot, str]:
        """Return an expression for each slot that any of the rows hold; it gives M for a row that does not."""
        expressions: dict[Slot, str] = {}
        for key in sorted(keys):
            named = self.plan.names[key]
            # repr() of a str is a string literal, so a user's name never becomes code.
            got = f"r[{key!r}]" if self.uniform else f"r.get({key!r}, M)"
            if isinstance(named, Composite):
                split = self.name(named.split)
                missing = f"({', '.join('M' for _ in named.slots)})"
                whole = f"{split}({got})" if self.uniform else f"({missing} if (t := {got}) is M else {split}(t))"
                for place, slot in enumerate(named.slots):
                    expressions[slot] = f"{whole}[{place}]"
            else:
                # Rows may use different names for one column: a synonym or its own name.
                other = expressions.get(named)
                expressions[named] = got if other is None or self.uniform else f"({got} if (w := {other}) is M else w)"
        return expressions

    def builder(self, *, is_insert: bool = True) -> Builder:
        may_omit = tuple(i for i, part in enumerate(self.parts) if "OMIT" in part)
        if self._in_context:
            written = {
                cell.slot: place
                for place, cell in enumerate(self.cells)
                if is_insert or cell.role in {"set", "onupdate"}
            }
            columns = self.plan.columns
            tables = [
                (table, {columns[slot, table]: place for slot, place in written.items() if (slot, table) in columns})
                for table in tables_of(self.plan)
            ]
            build = row_by_row(self.names, self.parts, tables, self._later, is_insert=is_insert)
        else:
            # The trailing comma makes a tuple even of one cell.
            body = f"lambda rows, X: [({' '.join(part + ',' for part in self.parts)}) for r in rows]"
            build = eval(body, self.names)  # noqa: S307 - made of names that this file chose and of literals
        keys = {f"r[{cell.slot.key!r}]": cell.slot.key for cell in self.cells if cell.slot.key}
        plain = tuple(keys.get(part, "") for part in self.parts)
        return Builder(tuple(self.cells), build, may_omit, plain if all(plain) else ())


def replaces_none(slot: Slot) -> bool:
    """Return whether None in a new row means the column's default."""
    return slot.supply.kind != "null" and not slot.none_is_value


def insert_builder(plan: MappingPlan, keys: frozenset[str], *, uniform: bool, render_nulls: bool) -> Builder:
    """Return the builder of new rows.

    Args:
        plan: the plan of the mapped class.
        keys: every key that a row of the page has.
        uniform: each row has all of them.
        render_nulls: None means NULL even if the column has a default.
    """

    def make() -> Builder:
        every = (*plan.slots.values(), *plan.unmapped)
        code = _Code(plan, uniform, in_context=any(slot.supply.kind == "context" for slot in every))
        given = code.given(keys)
        for slot in every:
            supply = slot.supply
            default = code.supplied(slot, supply)
            got = given.get(slot)
            if got is None or slot.generated:
                # If no row has a value, the database fills the column, or NULL does, as in a flush.
                if supply.kind in {"constant", "call", "context"} or (
                    supply.kind == "null" and slot.key and default == "None"
                ):
                    code.add(Cell("set", slot), default)
                continue
            # None is replaced by what the row would get without it. A key that the database makes is never NULL.
            replaces = replaces_none(slot) and (slot in plan.key or not render_nulls)
            if uniform:
                code.add(Cell("set", slot), f"({default} if (v := {got}) is None else v)" if replaces else got)
            elif replaces:
                code.add(Cell("set", slot), f"({default} if (v := {got}) is M or v is None else v)")
            else:
                code.add(Cell("set", slot), f"({default} if (v := {got}) is M else v)")
        return code.builder()

    return plan.cached(("insert", keys, uniform, render_nulls), make)  # type: ignore[no-any-return]


def update_builder(plan: MappingPlan, keys: frozenset[str], *, check: bool) -> Builder:
    """Return the builder of changed rows: each has all the `keys`, including the primary key.

    Args:
        plan: the plan of the mapped class.
        keys: the keys of the rows.
        check: compare the version that the rows hold; otherwise ignore it.
    """

    def make() -> Builder:
        every = (*plan.slots.values(), *plan.unmapped)
        in_context = any(slot.onupdate is not None and slot.onupdate.kind == "context" for slot in every)
        code = _Code(plan, True, in_context=in_context)
        given = code.given(keys)
        for slot in plan.key:
            code.add(Cell("key", slot), given.pop(slot))
        version = None if plan.version is None else given.pop(plan.version, None)
        if version is not None and plan.version is not None and check:
            code.add(Cell("expect", plan.version), version)
            if plan.generator is not None:
                code.add(Cell("set", plan.version), f"{code.name(plan.generator)}({version})")
        for slot, got in given.items():
            code.add(Cell("set", slot), got)
        if len(code.cells) > len(plan.key) or (version is not None):
            # If nothing changes, onupdate does not run.
            for slot in every:
                if slot.onupdate is not None and slot.onupdate.kind != "database" and slot not in given:
                    code.add(Cell("onupdate", slot), code.supplied(slot, slot.onupdate))
        return code.builder(is_insert=False)

    return plan.cached(("update", keys, check), make)  # type: ignore[no-any-return]


def key_builder(plan: MappingPlan, keys: frozenset[str]) -> Builder:
    """Return the builder of rows to look up: by their key, and by their version if they hold one."""

    def make() -> Builder:
        code = _Code(plan, True)
        given = code.given(keys)
        for slot in plan.key:
            code.add(Cell("key", slot), given[slot])
        if plan.version is not None and plan.version in given:
            code.add(Cell("expect", plan.version), given[plan.version])
        return code.builder()

    return plan.cached(("key", keys), make)  # type: ignore[no-any-return]
