"""The statements of the verbs in SQLAlchemy Core. Their values are parameters, or columns of a relation."""

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
    """Return the name of the parameter for a cell. No column has a name like this."""
    return f"sessionkit_{place}"


def parameter(page: Page) -> Value:
    """Return a function that gives the parameter of each cell."""
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
            # Never send a statement that would match all rows.
            raise OptionError(
                f"sessionkit cannot tell how {table.name} is joined to the key of {plan.name}; write "
                "its rows with the session instead"
            )
    of_class = plan.of_class.get(table)
    if of_class is not None:
        conditions.append(of_class)
    return conditions


def update_of(plan: MappingPlan, page: Page, value: Value, table: Table) -> Any:
    """Return the UPDATE of one table; None if it has nothing to write."""
    assignments: dict[Any, Any] = {}
    changes = False
    for place in page.places("set", "onupdate"):
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
        page: the page whose cells are written.
        table: the table to insert into.
        values: a column of a relation for each cell; None for parameters with the names of the columns.
        into: the dialect's own INSERT.
        order: the order in which to insert the rows of the relation.
        where: the condition on the rows of the relation.
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
    """Return the tables of a mapper; those that others refer to come first."""
    if plan.table is not None:
        return (plan.table,)
    tables: dict[Any, Any] = cast(Any, plan.mapper)._sorted_tables
    return [table for table in tables if table in plan.mapper.tables]
