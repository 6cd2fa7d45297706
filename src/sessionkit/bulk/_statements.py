"""The statements of the verbs, in SQLAlchemy's Core: the values are parameters, or columns of a relation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import Table, bindparam, delete, insert, select, update

from ..errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import ColumnElement

    from ._page import Cell, Page
    from ._plan import MappingPlan

    Value = Callable[[int], ColumnElement[Any]]


def parameter_name(place: int) -> str:
    """Return the name of the parameter for a cell; no column is called like this."""
    return f"sessionkit_{place}"


def parameter(page: Page) -> Value:
    """Return what gives the parameter of each cell."""
    return lambda place: bindparam(parameter_name(place), type_=page.cells[place].slot.column.type)


def column_in(plan: MappingPlan, cell: Cell, table: Table) -> Any:
    """Return the column of a cell in one of the mapper's tables; None if that table has none for it."""
    return plan.columns.get((cell.slot, table))


def matches(plan: MappingPlan, page: Page, value: Value, table: Table) -> list[ColumnElement[bool]]:
    """Return the conditions that find the row of each tuple in a table."""
    conditions: list[ColumnElement[bool]] = []
    for place in page.places("key", "expect"):
        column = column_in(plan, page.cells[place], table)
        if column is not None:
            conditions.append(column == value(place))
        elif page.cells[place].role == "key":
            # Never a statement that would take all rows.
            raise OptionError(f"sessionkit cannot tell how {table.name} is joined to the key of {plan.name}")
    of_class = plan.of_class.get(table)
    if of_class is not None:
        conditions.append(of_class)
    return conditions


def update_of(plan: MappingPlan, page: Page, value: Value, table: Table) -> Any:
    """Return the UPDATE of one table; None where it has nothing to write."""
    assignments: dict[Any, Any] = {}
    changes = False
    for place in page.places("set", "renew"):
        column = column_in(plan, page.cells[place], table)
        if column is not None:
            assignments[column] = value(place)
            changes = changes or page.cells[place].role == "set"
    version = plan.version.column if plan.version is not None else None
    if page.bumps and version is not None and version.table is table:
        assert plan.bump is not None
        assignments[version] = plan.bump(version)
        changes = True
    if not changes:
        return None
    return update(table).where(*matches(plan, page, value, table)).values(assignments)


def delete_of(plan: MappingPlan, page: Page, value: Value, table: Table) -> Any:
    """Return the DELETE from one table."""
    return delete(table).where(*matches(plan, page, value, table))


def written_places(page: Page) -> list[int]:
    """Return the cells that an INSERT writes."""
    return page.places("key", "set", "new")


def insert_of(
    page: Page,
    table: Table,
    values: Sequence[ColumnElement[Any]] | None = None,
    *,
    into: Any = None,
    order: ColumnElement[Any] | None = None,
    where: ColumnElement[bool] | None = None,
) -> Any:
    """Return the INSERT.

    Args:
        page: for its cells.
        table: where to.
        values: for each cell a column of a relation; None for parameters that are called like the columns.
        into: an INSERT of the dialect's own.
        order: in which order the rows of the relation are to be made.
        where: which of them.
    """
    statement = insert(table) if into is None else into
    if values is None:
        return statement
    written = written_places(page)
    query = select(*(values[place] for place in written))
    if order is not None:
        query = query.order_by(order)
    if where is not None:
        query = query.where(where)
    return statement.from_select([page.cells[place].slot.column for place in written], query)


def tables_of(plan: MappingPlan) -> Sequence[Table]:
    """Return the tables of a mapper, those that others point to first."""
    if plan.table is not None:
        return (plan.table,)
    tables: dict[Any, Any] = cast(Any, plan.mapper)._sorted_tables
    return [table for table in tables if table in plan.mapper.tables]
