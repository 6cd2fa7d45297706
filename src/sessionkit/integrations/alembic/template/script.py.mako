<%
    ## Several databases: those that alembic.ini names, and those that autogenerate has compared.
    named = [name.strip() for name in (config.get_main_option("databases") or "").split(",") if name.strip()]
    compared = sorted(key[: -len("_upgrades")] for key in context.keys() if key.endswith("_upgrades"))
    names = [*named, *(name for name in compared if name not in named)]
%>\
"""${message}

Revision ID: ${up_revision}
Revises: ${down_revision | comma,n}
Create Date: ${create_date}
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}

revision: str = ${repr(up_revision)}
down_revision: str | Sequence[str] | None = ${repr(down_revision)}
branch_labels: str | Sequence[str] | None = ${repr(branch_labels)}
depends_on: str | Sequence[str] | None = ${repr(depends_on)}


% if names:
def upgrade(engine_name: str) -> None:
    """Upgrade one of the databases."""
    globals()[f"upgrade_{engine_name}"]()


def downgrade(engine_name: str) -> None:
    """Downgrade one of the databases."""
    globals()[f"downgrade_{engine_name}"]()

% for name in names:

def upgrade_${name}() -> None:
    """Upgrade ${name}."""
    ${context.get(f"{name}_upgrades", "pass")}


def downgrade_${name}() -> None:
    """Downgrade ${name}."""
    ${context.get(f"{name}_downgrades", "pass")}

% endfor
% else:
def upgrade() -> None:
    """Upgrade the database."""
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    """Downgrade the database."""
    ${downgrades if downgrades else "pass"}
% endif
