"""The part that both shops share: the products, and the page that edits them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sessionkit import Versioned, commits

if TYPE_CHECKING:
    from sqlalchemy import Engine

PAGE = (Path(__file__).parent / "page.html").read_text()


class Base(DeclarativeBase):
    """The base of the shop's classes."""


class Product(Versioned, Base):
    """Something for sale. Its version is the ETag of its resource."""

    __tablename__ = "products"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    cents: Mapped[int]

    def as_json(self) -> dict[str, object]:
        """Return what a client sees."""
        return {"id": self.id, "name": self.name, "cents": self.cents}


def create_tables(engine: Engine) -> None:
    """Create the tables, and put a product on the shelf if it is empty."""
    Base.metadata.create_all(engine)
    commits.create_table(engine)
    with Session(engine) as session, session.begin():
        if session.scalar(select(Product.id).limit(1)) is None:
            session.add(Product(name="Teapot", cents=1900))
