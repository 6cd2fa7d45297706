"""A real Alembic project in a directory, from `alembic init` on, run as Alembic runs it."""

from __future__ import annotations

import io
import subprocess
import sys
from argparse import Namespace
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from alembic import command
from alembic.config import Config
from sqlalchemy import URL, NullPool, create_engine

from tests.support.postgres_binaries import client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.doors import Door

TEMPLATE = Path(
    str(subprocess.check_output([sys.executable, "-m", "sessionkit.integrations.alembic"], text=True).strip())
)

PLAIN = """
    class Order(Base):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
"""


def versioned(kind: str = "Versioned", *, column: str = "", table: str = "orders", extra: str = "") -> str:
    """Return the model of PLAIN, versioned."""
    name = f'\n        __version_column__ = "{column}"' if column else ""
    return f"""
    class Order({kind}, Base):
        __tablename__ = "{table}"{name}
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        {extra}
"""


MODELS = """
from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sessionkit import TimestampVersioned, UUIDVersioned, Versioned, XminVersioned

class Base(DeclarativeBase):
    pass
"""


class Project:
    """A directory with alembic.ini, migrations/ and the models of the moment."""

    def __init__(
        self, folder: Path, url: URL | str, models: str = PLAIN, *, call: str = "run_migrations(target_metadata)"
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.url = url if isinstance(url, URL) else URL.create(url)
        self.ini = folder / "alembic.ini"
        with redirect_stdout(io.StringIO()):
            command.init(self._config(), str(folder / "migrations"), template=str(TEMPLATE))
        address = self.url.render_as_string(hide_password=False).replace("%", "%%")
        text = self.ini.read_text().replace("driver://user:password@localhost/name", address)
        self.ini.write_text(text.replace("prepend_sys_path = .", f"prepend_sys_path = {folder}"))
        self.env = folder / "migrations" / "env.py"
        self.write_env(call)
        self.write_models(models)

    def write_env(self, call: str, head: str = "from shop_models import Base\ntarget_metadata = Base.metadata") -> None:
        text = (TEMPLATE / "env.py").read_text()
        text = text.replace("target_metadata = None", head).replace("run_migrations(target_metadata)", call)
        self.env.write_text(text)

    def write_models(self, models: str) -> None:
        (self.folder / "shop_models.py").write_text(MODELS + dedent(models))

    def migration(self, name: str, upgrade: str, downgrade: str = "pass", *, down: str | None = None) -> str:
        """Write a migration by hand after the newest one."""
        text = f"""
import sqlalchemy as sa
from alembic import op
revision = {name!r}
down_revision = {self.heads()[0] if self.heads() else None!r}
branch_labels = None
depends_on = None
def upgrade():
{_indented(upgrade)}
def downgrade():
{_indented(downgrade)}
"""
        (self.folder / "migrations" / "versions" / f"{name}.py").write_text(text)
        return name

    def heads(self) -> list[str]:
        from alembic.script import ScriptDirectory

        return list(ScriptDirectory.from_config(self._config()).get_heads())

    def _config(self, out: io.StringIO | None = None, x: list[str] | None = None) -> Config:
        out = out or io.StringIO()
        return Config(str(self.ini), stdout=out, output_buffer=out, cmd_opts=Namespace(x=x, verbose=False))

    def run(self, name: str, *args: Any, x: list[str] | None = None, connection: Any = None, **kw: Any) -> str:
        """Run a command in this process, and return what it printed."""
        out = io.StringIO()
        config = self._config(out, x)
        if connection is not None:
            config.attributes["connection"] = connection
        with self.inside():
            getattr(command, name)(config, *args, **kw)
        return out.getvalue()

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Have this process be as one of Alembic's, for as long as the block."""
        path = [*sys.path]
        sys.modules.pop("shop_models", None)
        # The handlers of its logging would outlive the test, with a stream that is closed.
        with patch("logging.config.fileConfig"):
            try:
                yield
            finally:
                sys.path[:] = path
                sys.modules.pop("shop_models", None)

    def autogenerate(self, message: str = "change", **kw: Any) -> str:
        """Write a migration, and return its text."""
        before = set(self.scripts())
        self.run("revision", message=message, autogenerate=True, **kw)
        (new,) = set(self.scripts()) - before
        return new.read_text()

    def scripts(self) -> list[Path]:
        return sorted((self.folder / "migrations" / "versions").glob("*.py"))

    def start(self, *args: str) -> subprocess.Popen[str]:
        """Start a command in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "alembic", "-c", str(self.ini), *args],
            cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def engine(self, **kw: Any) -> Any:
        """Return a sync engine on the same database."""
        drivers = {"aiosqlite": "sqlite+pysqlite", "asyncpg": "postgresql+psycopg"}
        return create_engine(
            self.url.set(drivername=drivers.get(self.url.get_driver_name(), self.url.drivername)),
            poolclass=NullPool,
            **kw,
        )

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        with self.engine().connect() as connection:
            return [tuple(row) for row in connection.exec_driver_sql(sql)]

    def execute(self, *statements: str) -> None:
        with self.engine().begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)


def _indented(body: str) -> str:
    return "\n".join(f"    {line}" for line in dedent(body).strip().splitlines())


def projects(doors: Door, tmp_path: Path) -> Callable[..., Project]:
    """Make a project on an empty database of the door: `make = pytest.fixture(name="make")(projects)`."""
    return partial(Project, tmp_path / "project", empty(doors, tmp_path))


def empty(doors: Door, tmp_path: Path, name: str = "project") -> URL:
    """Return the address of a database without tables; on PostgreSQL it is the door's, so the test has one of its own."""
    url = doors.database.url(doors.driver)
    if doors.backend == "sqlite":
        return url.set(database=str(tmp_path / f"{name}.db"))
    _empty_schema(doors.database.observer)
    return url


def empty_other(doors: Door, tmp_path: Path) -> URL:
    """Return the address of another one."""
    if doors.backend == "sqlite":
        return empty(doors, tmp_path, "other")
    url: URL = doors.other_engine().url
    engine = create_engine(url.set(drivername="postgresql+psycopg"), poolclass=NullPool, isolation_level="AUTOCOMMIT")
    _empty_schema(engine)
    return url


def _empty_schema(engine: Any) -> None:
    with engine.connect() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA public")


def psql(url: URL, script: str) -> None:
    """Run a script as a user would."""
    address = url.set(drivername="postgresql").render_as_string(hide_password=False)
    done = subprocess.run(
        [client("psql"), address, "--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1", "--file", "-"],
        input=script, text=True, capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
