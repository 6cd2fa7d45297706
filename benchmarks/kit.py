"""The cost of isolating tests, in the modes of the test kit and by hand.

    python -m benchmarks.kit [--url postgresql+psycopg://...] [--tests 1000] [--rounds 3] [--only TEXT]

Each row is a real run of pytest over many small tests (two units that write, one that reads), in a new process, from the
first test to the last. The rows take turns, and the shortest run of each counts. CPU time is that of pytest; the server's time
is in the wall time only. It runs on a SQLite file, and on PostgreSQL too if `--url` names a database, in which it creates ten
tables.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from sqlalchemy.engine import URL, make_url

from benchmarks._measure import conditions

SHOP = """
    import os
    import sessionkit
    from sqlalchemy import create_engine, delete, func, select, text
    from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

    class Base(DeclarativeBase):
        pass

    def table(number):
        return type(f"Order{number}", (Base,), {
            "__tablename__": f"kit_orders_{number}",
            "__annotations__": {"id": Mapped[int], "item": Mapped[str]},
            "id": mapped_column(primary_key=True),
        })

    Order, *others = map(table, range(10))
    engine = create_engine(os.environ["SHOP_URL"])
    if engine.dialect.name == "sqlite":
        sessionkit.sqlite.configure(engine)
    Session = sessionkit.sessionmaker(engine)
"""

TESTS = """
    import os
    import pytest
    from shop import Order, Session, func, select

    @pytest.mark.parametrize("number", range(int(os.environ["SHOP_TESTS"])))
    def test_it(number):
        for item in ("pen", "ink"):
            with Session.scope() as session:
                session.add(Order(item=item))
        with Session.scope() as session:
            session.scalar(select(func.count()).select_from(Order))
"""

CONFTEST = """
    import time
    from pathlib import Path
    import pytest
    from shop import Base, Session, delete, engine, text

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop():
        cpu, wall = time.process_time(), time.perf_counter()
        result = yield
        Path("took").write_text(f"{time.process_time() - cpu} {time.perf_counter() - wall}")
        return result

    @pytest.fixture(scope="session", autouse=True)
    def tables():
        Base.metadata.drop_all(engine)
        Base.metadata.create_all(engine)
        engine.dispose()
        yield
        Base.metadata.drop_all(engine)
        engine.dispose()

    @pytest.fixture
    def sessionkit_factories():
        return [Session]

    @pytest.fixture(autouse=True)
    def apart(request):
"""

WAYS = {
    "nothing (tests see each other's rows)": "yield",
    'mode="rollback"': 'request.getfixturevalue("sessionkit_isolation"); yield',
    'mode="template"': (
        'request.applymarker(pytest.mark.sessionkit(mode="template"))\n'
        '        request.getfixturevalue("sessionkit_isolation"); yield'
    ),
    "by hand: all tables emptied after each test": (
        "yield\n"
        "        with engine.begin() as connection:\n"
        '            if engine.dialect.name == "postgresql":\n'
        '                connection.execute(text("TRUNCATE " + ", ".join(Base.metadata.tables)))\n'
        "            else:\n"
        "                for table in reversed(Base.metadata.sorted_tables):\n"
        "                    connection.execute(delete(table))"
    ),
    "by hand: drop_all and create_all for each test": (
        "Base.metadata.drop_all(engine); Base.metadata.create_all(engine); yield"
    ),
}


def seconds(folder: Path, url: URL, tests: int) -> tuple[float, float]:
    """Return the CPU and the wall time of one run."""
    variables = {
        **os.environ,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "SHOP_URL": url.render_as_string(hide_password=False),
        "SHOP_TESTS": str(tests),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "sessionkit.integrations.pytest_plugin"]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder)],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    cpu, wall = map(float, (folder / "took").read_text().split())
    return cpu, wall


def measure(url: URL, way: str, tests: int) -> tuple[float, float]:
    """Return the CPU and the wall time of one test, in seconds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if url.get_backend_name() == "sqlite":
            url = url.set(database=str(folder / "shop.db"))
        for file, text in {
            "shop": textwrap.dedent(SHOP),
            "test_shop": textwrap.dedent(TESTS),
            "conftest": textwrap.dedent(CONFTEST + " " * 8 + WAYS[way]),
        }.items():
            (folder / f"{file}.py").write_text(text)
        cpu, wall = seconds(folder, url, tests)
        return cpu / tests, wall / tests


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", type=make_url, help="a PostgreSQL to measure on as well")
    parser.add_argument("--tests", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", metavar="TEXT", help="only the ways whose name contains it")
    arguments = parser.parse_args()
    print(conditions())
    for url in filter(None, [make_url("sqlite://"), arguments.url]):
        print(
            f"\n| {url.get_backend_name()}, ms for each of {arguments.tests} tests | CPU | wall | ratio of CPU | of wall |"
        )
        print("|---|---:|---:|---:|---:|")
        ways = [way for way in WAYS if arguments.only in way]
        runs = [{way: measure(url, way, arguments.tests) for way in ways} for _ in range(arguments.rounds)]
        best = {way: [min(run[way][i] for run in runs) for i in (0, 1)] for way in ways}
        for way, (cpu, wall) in best.items():
            first_cpu, first_wall = best[ways[0]]
            ratios = f"{cpu / first_cpu:.1f} | {wall / first_wall:.1f}"
            print(f"| {way} | {cpu * 1000:.1f} | {wall * 1000:.1f} | {ratios} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
