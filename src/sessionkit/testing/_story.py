"""A schedule, told as columns of SQL: one for each unit."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._schedule import Schedule, Serial, Step, Told

__all__ = ["lines_of", "story", "styled", "summary"]

WIDTH = 46
"""Of a column."""


def summary(found: Told) -> str:
    """Tell how much was run."""
    count = len(found.names)
    ran = f"{count} units: {found.explored} schedules were run"
    if isinstance(found.seed, str):
        return f"{count} units: the schedule of seed={found.seed!r} was run again"
    ran += f", {found.pruned} others are like one of them"
    if not found.complete:
        ran += f"; these are not all, but a sample (seed={found.seed})"
    return ran


def lines_of(step: Step, width: int = WIDTH) -> list[str]:
    """Return the lines of a step in its column."""
    lines = textwrap.wrap(step.text, width, subsequent_indent="  ") or [""]
    if step.waited:
        lines.append("  waits for another unit")
    if step.error is not None:
        lines += textwrap.wrap(f"-> {_error(step.error)}", width, initial_indent="  ", subsequent_indent="     ")
    elif step.result:
        lines += textwrap.wrap(f"-> {step.result}", width, initial_indent="  ", subsequent_indent="     ")
    return lines


def _error(error: BaseException) -> str:
    first = str(getattr(error, "orig", None) or error).strip().splitlines()
    return f"{type(error).__name__}: {first[0] if first else ''}"


def story(found: Told, schedule: Schedule, what: str) -> str:
    """Tell a schedule that went wrong."""
    return "\n".join([f"{summary(found)}; {what}. The shortest:", "", *_told(found, schedule)])


def _told(found: Told, schedule: Schedule) -> list[str]:
    names = [f"unit {number}: {name}" for number, name in enumerate(found.names, 1)]
    lines = [_row("", names), _row("", ["-" * WIDTH for _ in names])]
    for number, step in enumerate(schedule.steps, 1):
        for index, line in enumerate(lines_of(step)):
            cells = ["" for _ in names]
            cells[step.unit - 1] = line
            lines.append(_row(str(number) if index == 0 else "", cells))
    ends = [textwrap.wrap(str(outcome), WIDTH) for outcome in schedule.outcomes]
    lines += [
        _row("", [end[index] if index < len(end) else "" for end in ends]) for index in range(max(map(len, ends)))
    ]
    lines.append("")
    lines += _ends(found, schedule)
    gave_up = [outcome.error for outcome in schedule.outcomes if isinstance(outcome.error, TimeoutError)]
    lines += [str(error) for error in gave_up]
    if schedule.error is not None:
        said = str(schedule.error)
        lines.append(f"check: {type(schedule.error).__name__}{f': {said}' if said else ''}")
    if found.ignored:
        lines.append(f"not compared, because it differs each time: {', '.join(found.ignored)}")
    lines.append(f'replay with seed="{schedule.seed}"')
    return lines


def _row(number: str, cells: Sequence[str]) -> str:
    return f"{number:>3}  " + "  ".join(f"{cell:<{WIDTH}}" for cell in cells).rstrip()


def _ends(found: Told, schedule: Schedule) -> list[str]:
    """Tell the end state beside those of the units one after the other."""
    ran = {number for number, outcome in enumerate(schedule.outcomes, 1) if not outcome.refused}
    compared = [each for each in found.serial if set(each.order) == ran]
    differing = _differing([schedule.state, *(each.state for each in compared)])
    lines = [f"at the end: {_state(schedule.state, differing)}"]
    for each in compared:
        name = " then ".join(f"unit {number}" for number in each.order) or "no unit"
        lines.append(f"{name}: {_state(each.state, differing)}{_other_outcomes(schedule, each)}")
    return lines


def _other_outcomes(schedule: Schedule, serial: Serial) -> str:
    told = [
        f"unit {number} {outcome}"
        for number, outcome in serial.outcomes.items()
        if str(outcome) != str(schedule.outcomes[number - 1])
    ]
    return f"; {', '.join(told)}" if told else ""


def _differing(states: Sequence[Any]) -> set[str] | None:
    """Return the tables in which some of these states differ; None where they are no tables."""
    if not all(isinstance(state, dict) for state in states):
        return None
    names = {name for state in states for name in state}
    return {name for name in names if len({repr(sorted(map(repr, state.get(name, ())))) for state in states}) > 1}


def _state(state: Any, tables: set[str] | None) -> str:
    if tables is None:
        return repr(state)
    told = []
    for name in sorted(state):
        if tables and name not in tables:
            continue
        rows = sorted(map(repr, state[name]))
        if rows or name in tables:
            more = f", and {len(rows) - 10} more" if len(rows) > 10 else ""
            told.append(f"{name} {', '.join(rows[:10]) or 'is empty'}{more}")
    return "; ".join(told) or "all tables are empty"


STYLES = ("cyan", "magenta", "yellow", "green", "blue")


def styled(found: Told, schedule: Schedule | None, failures: int) -> Any:
    """Tell the same with rich."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    if schedule is None:
        return Text(f"{summary(found)}; none failed", style="green")
    table = Table(show_edge=False, pad_edge=False, show_lines=False)
    table.add_column("", justify="right", style="dim")
    for number, name in enumerate(found.names, 1):
        table.add_column(Text(f"unit {number}: {name}"), style=STYLES[(number - 1) % len(STYLES)])
    for number, step in enumerate(schedule.steps, 1):
        cells = [Text("") for _ in found.names]
        style = "bold red" if step.error is not None else ""
        cells[step.unit - 1] = Text("\n".join(lines_of(step, 200)), style=style)
        table.add_row(str(number), *cells)
    table.add_section()
    table.add_row("", *(Text(str(each), style="" if each.error is None else "bold red") for each in schedule.outcomes))
    rest = _told(found, schedule)
    after = rest[len(rest) - rest[::-1].index("") :]
    head = Text(f"{summary(found)}; {failures} failed. The shortest:", style="bold")
    return Group(head, Text(""), table, Text(""), Text("\n".join(after)))
