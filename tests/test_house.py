"""The house rules about imports: who may know whom, and what a bare `import sessionkit` must not cost.

A *room* is a module, or a package with all that is in it. `ROOMS` is the plan of the house. To change it, change the
line here and say why in the commit: it is the one place where a new arrow is decided.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy

import sessionkit

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "sessionkit"

# Who may import whom, from the ground up: a room may know only rooms that stand above it in this list.
ROOMS: dict[str, str] = {
    # private, at the bottom: they know nothing
    "_twins": "",
    "_sqlstate": "",
    "_loops": "",
    "_waiting": "",
    "_observers": "",
    # what everybody may know
    "errors": "_sqlstate",
    "_dialects": "errors",
    "isolation": "errors _dialects",
    "retry": "errors",
    "context": "errors",
    "_schemas": "errors",
    "commits": "_schemas errors _dialects",
    # The session's methods that find conflicts: versions put themselves in there, once there are any.
    "_stale": "errors",
    # what works on a session that it is given; a conflict is found in any session, and ours finds some more
    "version": "_dialects _stale _twins errors",
    # what happens inside a session: savepoints, failures, refusals
    "_unit": "",
    "_unit.savepoints": "",
    "_unit.watch": "errors",
    "_unit.standins": "_dialects",
    "_unit.watchdog": "_dialects",
    "_unit.session": "_stale _unit.standins context errors",
    "hooks": "_unit.savepoints _unit.session _unit.watch context errors",
    # the unit of work
    "_unit.locking": "",
    "_unit.verdict": "_unit.savepoints _unit.watch _dialects errors",
    "_unit.routes": "_unit.savepoints _unit.watch _unit.watchdog _dialects isolation errors",
    "_unit.restriction": "_unit.savepoints _unit.watch _dialects errors",
    "_unit.claims": "_unit.standins _unit.watch _unit.watchdog _dialects commits isolation",
    "_unit.twophase": "_unit.claims _unit.savepoints _unit.watch _dialects commits errors",
    "_unit.commit": "_unit.claims _unit.savepoints _unit.twophase _unit.verdict _unit.watch _unit.watchdog _schemas _waiting "
    "_dialects commits errors",
    "_unit.readers": "_waiting _dialects errors",
    "_unit.unit": "_unit.commit _unit.locking _unit.readers _unit.routes _unit.savepoints _unit.session _unit.standins "
    "_unit.twophase _unit.verdict _unit.watch _unit.watchdog _schemas _dialects context isolation errors",
    # the scopes around it
    "_plan": "_schemas isolation retry errors",
    "_binds": "errors",
    "_makers": "_plan _unit.routes errors",
    "_inner": "_plan _unit.restriction _unit.verdict errors",
    "_attempts": "_loops _observers _waiting retry errors",
    "_decorate": "_attempts errors",
    "_base_scope": "_inner _makers _observers _plan _unit.session _unit.unit context errors",
    "scope": "_base_scope _decorate _inner _makers _observers _plan _unit.session _twins _unit.unit context hooks errors",
    "_methods": "_attempts retry scope",
    "factory": "_binds _makers _methods _plan _unit.readers _unit.session context errors",
    "async_factory": "_binds _makers _methods _unit.readers factory",
    # what works on a session that it is given
    "bulk": "_dialects _twins _unit.watch errors version",
    "binding": "_unit.claims _makers _unit.twophase context errors",
    "sqlite": "_dialects errors",
    # the front hall: names only, each imported at its first use, so it may know every public room
    "__init__": "*",
    # what stands on the public rooms, and what nothing else may import
    # A request that is run again tells its scopes so, ends them in another task than it began them in, and asks which of
    # them leave something behind. A migration waits for its turn. The test kit stands in for engines, and follows
    # the COMMITs of scopes.
    "integrations": "* _attempts _dialects _makers _observers _twins _waiting _unit.routes _unit.savepoints _unit.session "
    "_unit.standins _unit.watch",
    # The doctor asks what each dialect can do, of the same tables as the scopes.
    "cli": "* _dialects",
    "__main__": "cli",
}

# Reached through `import sessionkit`: each of these is an optional dependency, and none may be imported by it.
OPTIONAL = (
    "aiosqlite",
    "alembic",
    "asyncpg",
    "fastapi",
    "flask",
    "opentelemetry",
    "psycopg",
    "psycopg2",
    "pytest",
    "rich",
    "sqlite3",
    "starlette",
    "werkzeug",
)


def room_of(module: str) -> str:
    """Name the room of `sessionkit.a.b`: its first part, and the front hall for the package itself."""
    parts = module.removeprefix("sessionkit").lstrip(".").split(".")
    # The unit's package is large, and each of its modules a room.
    return ".".join(parts[:2]) if parts[0] == "_unit" else parts[0] or "__init__"


def module_of(file: Path) -> str:
    parts = ("sessionkit", *file.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


MODULES = {module_of(file) for file in files()}


TYPES_SEEN = ("_dialects", "errors", "version")
"""Rooms in which an import for types only counts as any other: what a type names, the file knows."""


class Imports(ast.NodeVisitor):
    """The modules of ours that a file imports when it runs; in the rooms of `TYPES_SEEN` for its types as well."""

    def __init__(self, file: Path) -> None:
        self.types = room_of(module_of(file)) in TYPES_SEEN
        self.module = module_of(file)
        self.package = self.module if file.name == "__init__.py" else self.module.rpartition(".")[0]
        self.found: list[tuple[str, int]] = []
        self.visit(ast.parse(file.read_text()))

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" in ast.unparse(node.test) and not self.types:
            for other in node.orelse:
                self.visit(other)
        else:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name, node.lineno)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            above = self.package.split(".")[: len(self.package.split(".")) - node.level + 1]
            base = ".".join([*above, *filter(None, [base])])
        for alias in node.names:
            # `from . import errors` means a module, `from .errors import X` a name in one.
            inner = f"{base}.{alias.name}"
            self._add(inner if inner in MODULES else base, node.lineno)

    def _add(self, module: str, line: int) -> None:
        if module == "sessionkit" or module.startswith("sessionkit."):
            self.found.append((module, line))


def arrows() -> list[tuple[str, str, str]]:
    """Return (room, room that it imports, where) for every import between two rooms."""
    return [
        (room_of(imports.module), room_of(imported), f"{file.relative_to(PACKAGE.parent)}:{line}")
        for file in files()
        for imports in [Imports(file)]
        for imported, line in imports.found
        if room_of(imported) != room_of(imports.module)
    ]


def is_public(room: str) -> bool:
    return not room.startswith("_")


def allowed(room: str) -> set[str]:
    above = list(ROOMS)[: list(ROOMS).index(room)]
    named = set(ROOMS[room].split())
    return named - {"*"} | {other for other in above if is_public(other)} if "*" in named else named


def test_every_module_has_a_room() -> None:
    strangers = sorted({room_of(module) for module in MODULES} - set(ROOMS))
    assert not strangers, (
        f"no room is planned for {', '.join(strangers)}: add a line to ROOMS in tests/test_house.py that says what it "
        "may import, below all that it imports; or put the code into a room that is there"
    )


def test_a_room_imports_only_what_the_plan_allows() -> None:
    wrong = [
        f"{where}: `{room}` imports `{imported}`, which it may not. Move the code to where the import is allowed, hand "
        f"the thing in as an argument, or change the line of `{room}` in ROOMS"
        for room, imported, where in arrows()
        if room in ROOMS and imported not in allowed(room)
    ]
    assert not wrong, "\n".join(dict.fromkeys(wrong))


def test_a_room_is_entered_by_its_door() -> None:
    """What a package keeps in modules with an underscore, only that package imports."""
    wrong = [
        f"{file.relative_to(PACKAGE.parent)}:{line} imports {imported}, which is inside of another room; let the "
        f"`__init__` of `{room_of(imported)}` hand out what is needed"
        for file in files()
        for imports in [Imports(file)]
        for imported, line in imports.found
        if room_of(imported) != room_of(imports.module)
        and "._" in imported.removeprefix(f"sessionkit.{room_of(imported)}")
    ]
    assert not wrong, "\n".join(wrong)


def test_no_arrow_of_the_plan_points_up() -> None:
    order = list(ROOMS)
    wrong = [
        f"`{room}` may import `{other}`, which stands below it in ROOMS: order the lines so that each room follows "
        "what it imports; where that is impossible there is a circle, and one of its arrows has to go"
        for room in ROOMS
        for other in allowed(room)
        if other not in order or order.index(other) >= order.index(room)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Inside a room too: there the plan says nothing."""
    edges = {
        imports.module: {imported for imported, _ in imports.found} for file in files() for imports in [Imports(file)]
    }
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> None:
        if module in path:
            circle = " -> ".join([*path[path.index(module) :], module])
            pytest.fail(f"these modules import each other: {circle}. Move what they share into a module below both")
        if module in done:
            return
        for imported in sorted(edges.get(module, ())):
            walk(imported, [*path, module])
        done.add(module)

    for module in sorted(edges):
        walk(module, [])


def loaded_by(statement: str) -> set[str]:
    """Return the modules that a fresh interpreter has loaded after a statement, and had not before."""
    program = f"import sys; before = set(sys.modules); {statement}; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def imported_by(statement: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after a statement, and had not before."""
    return {name.split(".")[0] for name in loaded_by(statement)}


def rooms_loaded_by(statement: str) -> set[str]:
    """Return the rooms of ours that a statement loads, the front hall aside."""
    ours = {name for name in loaded_by(statement) if name.startswith("sessionkit.")}
    return {room_of(name).partition(".")[0] for name in ours}


def test_the_front_hall_loads_no_room() -> None:
    assert rooms_loaded_by("import sessionkit") == set()
    assert not {"sqlalchemy.dialects.postgresql", "sqlalchemy.dialects.sqlite"} & loaded_by("import sessionkit")


@pytest.mark.parametrize(
    ("statement", "unused"),
    [
        ("from sessionkit import Session, session_scope, sessionmaker, scoped_session, on_commit", "bulk version"),
        ("from sessionkit import Preset, Retry, SERIALIZABLE, VersionConflict", "_dialects _unit bulk commits version"),
        ("from sessionkit import Versioned, version_of", "_unit bulk commits"),
        ("from sessionkit import errors", "_dialects _unit bulk commits version"),
    ],
)
def test_a_name_of_the_front_hall_loads_only_the_rooms_that_it_needs(statement: str, unused: str) -> None:
    assert not rooms_loaded_by(statement) & set(unused.split())


def test_each_way_to_reach_a_name_of_the_front_hall_works() -> None:
    loaded_by(
        "import sessionkit; sessionkit.bulk.insert; sessionkit.sqlite.configure; sessionkit.retry.Retry; "
        "import sessionkit.bulk; from sessionkit import Versioned; assert sessionkit.Versioned is Versioned; "
        "assert set(sessionkit.__all__) <= set(dir(sessionkit)); assert not hasattr(sessionkit, 'no_such_name'); "
        "from sessionkit import *"
    )


def test_the_front_hall_offers_the_same_names_to_type_checkers_and_at_run_time() -> None:
    """The type checkers read one list of imports, `__getattr__` another."""
    (block,) = [node for node in ast.parse((PACKAGE / "__init__.py").read_text()).body if isinstance(node, ast.If)]
    typed = {
        alias.name: node.module or "" for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert sorted(typed) == sorted(sessionkit.__all__)
    assert vars(sessionkit)["_MODULE_OF"] == {name: module for name, module in typed.items() if module}


def test_importing_sessionkit_imports_no_driver_and_no_framework() -> None:
    # What SQLAlchemy itself brings is not ours to answer for.
    extra = imported_by("import sessionkit") - imported_by("import sqlalchemy, sqlalchemy.orm")
    assert not extra & set(OPTIONAL), f"`import sessionkit` imports {sorted(extra & set(OPTIONAL))}"


def test_importing_sessionkit_imports_no_greenlet() -> None:
    if sqlalchemy.__version__.startswith("2.0"):
        # SQLAlchemy 2.0 imports it itself, where it is installed; then nothing of ours can be told from that.
        assert "greenlet" in imported_by("import sqlalchemy")
        return
    assert "greenlet" not in imported_by("import sessionkit")
