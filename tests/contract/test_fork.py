"""Law 17 across a fork: the child's copy of an open scope is not the child's, and no socket is shared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.support.doors import Door

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("forking.py")

pytestmark = [
    pytest.mark.doors("sqlite-sync", "postgresql-sync"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork"),
]


def run(doors: Door, case: str) -> dict[str, Any]:
    """Run a case of forking.py on the door's database; return what parent and children saw."""
    url = doors.database.url(doors.driver).render_as_string(hide_password=False)
    done = subprocess.run(
        [sys.executable, str(PROGRAM), case, url], cwd=ROOT, capture_output=True, text=True, check=False, timeout=90
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


async def test_a_decorated_function_in_a_child_is_a_unit_of_its_own_or_refused(doors: Door) -> None:
    said = run(doors, "decorated inside")
    child = said["child"]
    assert "returned" in child or child.get("refused"), child
    assert ("child" in said["names"]) is ("returned" in child), "it was told one thing, and the other is so"
    assert child["exit"] == 0
    assert said["alive"] == 1
    if doors.backend == "postgresql":
        assert {"parent", "parent again"} <= set(said["names"])


async def test_the_session_of_an_open_scope_is_refused_in_a_child_and_the_parents_unit_goes_on(doors: Door) -> None:
    said = run(doors, "session inside")
    for child in (said["child"], said["ambient"], said["added"]):
        # (Where no scope is seen at all, that is an answer as well: NoCurrentSession is a ScopeError.)
        assert child.get("refused"), child
    assert said["alive"] == 1
    assert said["names"] == ["parent", "parent again"]


@pytest.mark.parametrize("case", ["leaves by an error", "leaves quietly"])
async def test_a_child_that_leaves_the_scope_it_inherited_touches_nothing_of_the_parents(
    doors: Door, case: str
) -> None:
    said = run(doors, case)
    expected = {"LookupError"} if case == "leaves by an error" else {"quietly", "SessionKitError"}
    assert said["child"]["left"] in expected
    assert "commit" not in said["child"]["hooks"], "nothing was committed by the child"
    assert said["alive"] == 1
    assert said["hooks"] == ["commit"]
    assert said["names"] == ["parent", "parent again"]


async def test_a_factory_that_was_used_before_the_fork_shares_no_connection_with_its_children(doors: Door) -> None:
    said = run(doors, "served after use")
    seen = [said["before"]]
    for worker in said["workers"]:
        assert worker["exit"] == 0
        own, again, inner = worker["returned"]
        assert own == again, "the pool of the child is a pool"
        seen += [own, inner["returned"]]
    assert len(set(seen)) == len(seen) == 5, "two processes have used one connection"
    assert said["after"] == said["before"], "the parent's connection has not survived its children"
    assert sorted(said["names"]) == sorted(
        ["parent", "parent again"]
        + [f"worker {number}{rest}" for number in range(2) for rest in ("", " again", " inner")]
    )


async def test_children_that_are_forked_inside_a_scope_share_no_connection_with_it(doors: Door) -> None:
    said = run(doors, "served while open")
    assert said["after"] == said["before"]
    served = [worker["returned"] for worker in said["workers"] if "returned" in worker]
    assert all(worker.get("refused") for worker in said["workers"] if "returned" not in worker), said
    assert said["before"] not in served
    assert len(set(served)) == len(served)


async def test_a_server_that_forks_without_pythons_hooks_shares_no_connection_with_its_workers(doors: Door) -> None:
    """As uWSGI does, in whose workers every scope ran on the master's connection."""
    said = run(doors, "served without hooks")
    seen = [said["before"]]
    for worker in said["workers"]:
        own, again = worker["returned"]
        assert own == again, "the pool of the child is a pool"
        seen.append(own)
    assert len(set(seen)) == len(seen) == 3, "two processes have used one connection"
    assert said["after"] == said["before"]
