"""Alembic runs this file for each command; run_migrations() does the work."""

from logging.config import fileConfig

from alembic import context

from sessionkit.integrations.alembic import run_migrations

if context.config.config_file_name is not None:
    fileConfig(context.config.config_file_name, disable_existing_loggers=False)

# The models, for `alembic revision --autogenerate`:
# from myapp.models import Base
# target_metadata = Base.metadata
target_metadata = None

# The database is sqlalchemy.url in alembic.ini; or pass engine=, which may be an Engine, an AsyncEngine, a URL, or for
# several databases a mapping from names to these.
run_migrations(target_metadata)
