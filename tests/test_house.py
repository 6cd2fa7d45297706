"""The house rules about imports: who may know whom, and what a bare `import sessionkit` must not cost.

A *room* is a module, or a package with all that is in it. `ROOMS` is the plan of the house. To change it, change the
line here and say why in the commit: it is the one place where a new arrow is decided.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlalchemy

import sessionkit
from sessionkit import _dialects

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "sessionkit"

# Who may import whom, from the ground up: a room may know only rooms that stand above it in this list. Imports for types
# count as any other: what a type names, the file knows.
ROOMS: dict[str, str] = {
    # private, at the bottom: they know nothing
    "_bridge": "",
    "_sqlstate": "",
    "_loops": "",
    "_waiting": "",
    # what everybody may know
    "errors": "_sqlstate",
    "_dialects": "_bridge errors",
    "isolation": "errors _dialects",
    "retry": "errors",
    "context": "errors",
    "_schemas": "errors",
    "_binds": "errors",
    # which rows, and which of many, may be kept to oneself
    "_lockable": "",
    "_mutex": "errors",
    "_call_site": "",
    "_stale_reads": "_call_site errors",
    # options that are functions of the call's arguments
    "_arguments": "errors",
    # what is done once: the keys, and the table that has them
    "_once": "_arguments errors",
    "_claims": "_dialects _schemas errors",
    "_markers": "_dialects _schemas errors",
    # what a transaction is set to
    "_parameters": "",
    "_settings": "_parameters errors",
    "_observers": "context retry",
    # The session's methods that find conflicts: versions put themselves in there, once there are any.
    "_stale": "errors",
    # what a scope does when it is entered, decided before anything is done
    "_plan": "_arguments _mutex _once _schemas _settings errors isolation retry",
    # the transaction of a unit, from BEGIN to close: its __init__ says in which order to read it
    "_core": "",
    "_core.seams": "_dialects",
    "_core.savepoints": "",
    "_core.connection": "_bridge _core.seams _dialects _markers context errors",
    "_core.hooks": "_core.connection _core.savepoints errors",
    "_core.commit": "_binds _core.connection _core.savepoints _dialects _waiting context errors",
    "_core.session": "_settings _stale_reads _binds _core.connection _core.commit _core.seams _stale context errors",
    "_core.features": "_arguments _binds _call_site _claims _lockable _mutex _once _settings _core.commit _core.connection _core.savepoints _core.seams _dialects _markers _schemas _waiting context errors "
    "isolation",
    "_core.unit": "_core.commit _core.connection _core.features _core.hooks _core.savepoints _core.session _dialects _plan "
    "_settings context errors isolation retry",
    "_core.joined": "_core.commit _core.connection _core.features _core.savepoints _core.unit _dialects _plan context errors",
    # the scopes around it, and the factories that make them
    "_factory_info": "_core.features _dialects _plan errors isolation retry",
    "_attempts": "_loops _observers _waiting errors retry",
    "_decorate": "_arguments _attempts context errors",
    "scope": "_arguments _once _core.hooks _core.joined _core.session _core.unit _decorate _factory_info _mutex _observers _plan _settings _bridge context "
    "errors isolation retry",
    "hooks": "_core.connection _core.hooks _core.savepoints _core.session context errors",
    "_methods": "_attempts _plan scope",
    "factory": "_binds _core.features _core.session _factory_info _methods _plan context errors",
    "async_factory": "_binds _core.features _core.session _factory_info _methods errors factory",
    # what works on a session that it is given; a conflict is found in any session, and ours finds some more
    "version": "_dialects _stale errors",
    "commits": "_binds _claims _core.session _dialects _markers _once context errors",
    "locks": "_core.session _dialects _lockable _mutex _stale_reads context errors",
    "bulk": "_core.connection _core.savepoints _dialects _mutex _bridge errors version",
    "binding": "_core.features _factory_info _markers context errors",
    "sqlite": "_dialects errors",
    # for tests: where an engine's connections are led instead
    "_database_copy": "_dialects context errors",
    # the one door for what stands on the public rooms, and what comes in by it; nothing else may import these
    "_spi": "_claims _database_copy _once _core.connection _core.features _core.hooks _core.joined _core.savepoints _core.seams _core.session _core.unit _dialects "
    "_factory_info _observers _plan _settings _bridge _waiting context isolation retry",
    "testing": "_spi errors",
    # the front hall: names only, each imported at its first use, so it may know every public room
    "__init__": "*",
    "integrations": "* _spi",
    "cli": "* _spi",
    "__main__": "cli",
}

FILES_OF_CORE = 8
"""How many files may stand directly in ``_core``, so that the life of a transaction can be read in one sitting."""

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
    # The core is large, and each of its files a room; so are its features, together.
    return ".".join(parts[:2]) if parts[0] == "_core" else parts[0] or "__init__"


def module_of(file: Path) -> str:
    parts = ("sessionkit", *file.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


MODULES = {module_of(file) for file in files()}


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


class Imports(ast.NodeVisitor):
    """The modules of ours that a file imports: when it runs, later, or for its types only."""

    def __init__(self, file: Path) -> None:
        self.module = module_of(file)
        self.package = self.module if file.name == "__init__.py" else self.module.rpartition(".")[0]
        self.found: list[tuple[str, int]] = []
        self.visit(parsed(file))

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


@cache
def imports_of(file: Path) -> Imports:
    return Imports(file)


def arrows() -> list[tuple[str, str, str]]:
    """Return (room, room that it imports, where) for every import between two rooms."""
    return [
        (room_of(imports.module), room_of(imported), f"{file.relative_to(PACKAGE.parent)}:{line}")
        for file in files()
        for imports in [imports_of(file)]
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
        for imports in [imports_of(file)]
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
    """Inside a room too: there the plan says nothing. A type that is imported is an arrow as well."""
    edges = {
        imports.module: {imported for imported, _ in imports.found if imported != imports.module}
        for imports in map(imports_of, files())
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


def test_the_core_is_few_files() -> None:
    found = sorted(file.name for file in (PACKAGE / "_core").glob("*.py") if file.name != "__init__.py")
    assert len(found) <= FILES_OF_CORE, (
        f"_core has {len(found)} files ({', '.join(found)}), more than {FILES_OF_CORE}: put the code where its story is "
        "told, or what only some units ask for into a file of _core/features"
    )
    said = (PACKAGE / "_core" / "__init__.py").read_text()
    assert [name for name in found if f"``{name.removesuffix('.py')}``" not in said] == []


def compared(node: ast.Compare) -> Iterator[ast.expr]:
    """Yield what is compared, and what is in the tuples, sets and lists that something is looked for in."""
    for side in (node.left, *node.comparators):
        yield from side.elts if isinstance(side, ast.Tuple | ast.Set | ast.List) else [side]


def test_only_the_room_of_the_dialects_asks_for_a_dialect_by_its_name() -> None:
    """Others look an entry up in a table, theirs or that of ``_dialects``: one more dialect is one more entry."""
    wrong = [
        f"{file.relative_to(PACKAGE.parent)}:{node.lineno} compares something with {side.value!r}: ask the entry of the "
        "dialect, `_dialects.of(bind)`, and give it what is asked"
        for file in files()
        if room_of(module_of(file)) != "_dialects"
        for node in ast.walk(parsed(file))
        if isinstance(node, ast.Compare)
        for side in compared(node)
        if isinstance(side, ast.Constant) and side.value in _dialects._ENTRIES
    ]
    assert not wrong, "\n".join(wrong)


def test_the_map_of_the_contributors_shows_what_is_there() -> None:
    text = (PACKAGE.parents[1] / "CONTRIBUTING.md").read_text()
    tree, steps = text.partition("```text")[2].partition("```")[::2]
    named = {name.strip("/") for name in re.findall(r"\w+\.py|(?<=── )\w+/", tree)}
    assert {name for name in named if not list(PACKAGE.rglob(name))} == set()
    public = {path.name for path in PACKAGE.iterdir() if not path.name.startswith("_") and path.name != "py.typed"}
    assert public <= named
    steps = steps.partition("One scope, step by step:")[2].partition("##")[0]
    defined = {
        node.name
        for file in files()
        for node in ast.walk(parsed(file))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    for code in re.findall(r"`([\w./]+)`", steps):
        if code.endswith((".py", "/")):
            assert (PACKAGE / code).exists(), code
        else:
            assert set(code.split(".")) <= defined, code


def loaded_by(statement: str) -> set[str]:
    """Return the modules that a fresh interpreter has loaded after a statement, and had not before."""
    program = f"import sys; before = set(sys.modules); {statement}\nprint(*sorted(set(sys.modules) - before))"
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
        (
            "from sessionkit import Session, session_scope, sessionmaker, scoped_session, on_commit",
            "bulk version commits sqlite binding async_factory _spi integrations cli",
        ),
        ("from sessionkit import Preset, Retry, SERIALIZABLE, VersionConflict", "_dialects _core bulk commits version"),
        ("from sessionkit import Versioned, version_of", "_core bulk commits scope"),
        ("from sessionkit import bulk", "commits scope factory"),
        ("from sessionkit import errors", "_dialects _core bulk commits version"),
    ],
)
def test_a_name_of_the_front_hall_loads_only_the_rooms_that_it_needs(statement: str, unused: str) -> None:
    assert not rooms_loaded_by(statement) & set(unused.split())


def test_a_scope_loads_the_entry_of_its_own_dialect_and_no_feature_that_was_not_asked_for() -> None:
    imported = "from sessionkit import sessionmaker, session_scope"
    used = (
        f"{imported}; from sqlalchemy import create_engine, text; Session = sessionmaker(create_engine('sqlite://'))\n"
        "with Session.scope() as session: session.execute(text('SELECT 1'))\n"
    )
    dialects = {f"sqlalchemy.dialects.{name}" for name in ("mysql", "postgresql", "sqlite")}
    entries = {f"sessionkit._dialects.{module}" for module, _ in _dialects._ENTRIES.values()}
    seen = loaded_by(imported)
    assert not {name for name in seen if name.startswith("sessionkit._core.features.")}
    assert not seen & (dialects | entries)
    seen = loaded_by(used)
    assert not {name for name in seen if name.startswith("sessionkit._core.features.")}
    assert seen & entries == {"sessionkit._dialects.sqlite"}
    assert seen & dialects == {"sqlalchemy.dialects.sqlite"}


def test_each_way_to_reach_a_name_of_the_front_hall_works() -> None:
    loaded_by(
        "import sessionkit; sessionkit.bulk.insert; sessionkit.sqlite.configure; sessionkit.retry.Retry; "
        "import sessionkit.bulk; from sessionkit import Versioned; assert sessionkit.Versioned is Versioned; "
        "assert set(sessionkit.__all__) <= set(dir(sessionkit)); assert not hasattr(sessionkit, 'no_such_name'); "
        "from sessionkit import *"
    )


def test_the_front_hall_offers_the_same_names_to_type_checkers_and_at_run_time() -> None:
    """The type checkers read one list of imports, `__getattr__` another."""
    (block,) = [node for node in parsed(PACKAGE / "__init__.py").body if isinstance(node, ast.If)]
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
