"""The peers by name. A peer's packages are imported on demand."""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.compare.peer import Peer

MODULES = {
    "sessionkit": "of_sessionkit",
    "SQLAlchemy": "of_sqlalchemy",
    "Flask-SQLAlchemy": "of_flask_sqlalchemy",
    "Flask-SQLAlchemy-Lite": "of_flask_sqlalchemy_lite",
    "advanced-alchemy": "of_advanced_alchemy",
    "oslo.db": "of_oslo_db",
    "Django": "of_django",
}
NEEDED = {
    "Flask-SQLAlchemy": "flask-sqlalchemy",
    "Flask-SQLAlchemy-Lite": "flask-sqlalchemy-lite",
    "advanced-alchemy": "advanced-alchemy",
    "oslo.db": "oslo.db",
    "Django": "django",
}
REFERENCE = "SQLAlchemy"


def peer(name: str) -> type[Peer]:
    """Return the class of a peer."""
    found: type[Peer] = import_module(f"benchmarks.compare.peers.{MODULES[name]}").PEER
    return found


def absent() -> list[str]:
    """Name the packages of peers that are missing here."""
    missing = []
    for package in NEEDED.values():
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            missing.append(package)
    return missing
