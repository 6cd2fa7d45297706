"""Print where the template is: ``alembic init -t "$(python -m sessionkit.integrations.alembic)" migrations``.

Alembic looks for a template by name among its own only, but takes a path.
"""

from pathlib import Path

print(Path(__file__).with_name("template"))  # noqa: T201
