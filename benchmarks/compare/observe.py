"""Ask a peer all questions on one backend."""

from __future__ import annotations

import gc
import warnings
from typing import TYPE_CHECKING

from benchmarks.compare import peers
from benchmarks.compare.peer import Missing
from benchmarks.compare.questions import QUESTIONS

if TYPE_CHECKING:
    from benchmarks.compare.questions import Question
    from benchmarks.compare.stage import Stage

# An outcome; if a feature is missing, also the page of the documentation that shows it: {"outcome": ..., "page": ...}
Outcome = dict[str, str]


def ask(stage: Stage, name: str, question: Question) -> Outcome:
    """Stage a question on empty tables for one peer."""
    stage.reset()
    peer = peers.peer(name)(stage.url, serializable=question.serializable)
    try:
        with warnings.catch_warnings():
            # A connection that is left to the garbage collector warns; here the outcome shows it.
            warnings.simplefilter("ignore")
            return {"outcome": question.ask(stage, peer)}
    except Missing as missing:
        return {"outcome": missing.what, "page": missing.page}
    finally:
        peer.close()
        gc.collect()


def ask_all(stage: Stage, name: str) -> dict[str, Outcome]:
    """Return the outcomes of all questions that can be asked here, by their keys."""
    return {question.key: ask(stage, name, question) for question in QUESTIONS if stage.backend in question.backends}
