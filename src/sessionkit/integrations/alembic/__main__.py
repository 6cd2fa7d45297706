"""Print the path of the template: ``alembic init -t "$(python -m sessionkit.integrations.alembic)" migrations``.

Alembic finds only its own templates by name, but it also accepts a path.
"""

from pathlib import Path

print(Path(__file__).with_name("template"))  # noqa: T201
