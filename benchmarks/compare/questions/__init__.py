"""All questions, in the order of the page."""

from __future__ import annotations

from benchmarks.compare.questions import commits, concurrency, failures, hooks, limits, nesting, races, testing
from benchmarks.compare.questions._question import Question

__all__ = ["GROUPS", "QUESTIONS", "Question"]

GROUPS: dict[str, list[Question]] = {
    "Swallowed errors": failures.QUESTIONS,
    "Units inside units": nesting.QUESTIONS,
    "Two units at the same time": races.QUESTIONS,
    "After the commit": hooks.QUESTIONS,
    "A commit whose answer is lost": commits.QUESTIONS,
    "Promises of a unit": limits.QUESTIONS,
    "Async code and threads": concurrency.QUESTIONS,
    "Tests": testing.QUESTIONS,
}
QUESTIONS = [question for questions in GROUPS.values() for question in questions]
