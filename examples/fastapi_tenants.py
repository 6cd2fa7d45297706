"""The shop with FastAPI once more, for two tenants who share its table: each sees and edits its own products only.

uvicorn --app-dir examples fastapi_tenants:app, then

curl -H "Authorization: Bearer token-of-ann" http://127.0.0.1:8000/products

It needs PostgreSQL, and a user who may create a role: DATABASE_URL=postgresql+asyncpg://user:password@host/name.
"""

# Without `from __future__ import annotations`: FastAPI reads the annotations of endpoints that stand in a function.

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from fastapi import FastAPI, Header, HTTPException, Response
from fastapi.requests import HTTPConnection
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import sessionkit.integrations.alembic  # noqa: F401 - it registers op.enable_row_security()
from sessionkit import READ_ONLY, REQUIRED, SYSTEM, Versioned, async_sessionmaker, etag, expect_etag
from sessionkit.integrations.fastapi import SessionDepends, install

ROLE = "sessionkit_example_shop"
"""With whose rights the requests work: it owns nothing, so the policy binds it."""

TENANTS = {"token-of-ann": "ann", "token-of-bob": "bob"}
"""Whose token it is. In your application: what a token says, and only after it was checked."""


class Base(DeclarativeBase):
    """The tables of this example."""


class Product(Versioned, Base):
    """A product, and the tenant that sells it. The database fills the tenant in, from the setting of the transaction."""

    __tablename__ = "tenant_products"

    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(server_default=text("current_setting('app.tenant')"), index=True)
    name: Mapped[str]
    cents: Mapped[int]


class ProductIn(BaseModel):
    """What a client sends."""

    name: str
    cents: int


class ProductOut(ProductIn):
    """What a client sees."""

    model_config = ConfigDict(from_attributes=True)
    id: int


def create_tables(connection: Connection) -> None:
    """Make the table, its policy and the role, as a migration would."""
    if connection.dialect.has_table(connection, Product.__tablename__):
        return
    Base.metadata.create_all(connection)
    op: Any = Operations(MigrationContext.configure(connection))
    op.enable_row_security(Product.__tablename__, "tenant", "app.tenant")
    if not connection.scalar(text("SELECT count(*) FROM pg_roles WHERE rolname = :role"), {"role": ROLE}):
        connection.execute(text(f"CREATE ROLE {ROLE} NOLOGIN"))
        connection.execute(text(f"GRANT {ROLE} TO current_user"))
    connection.execute(text(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {Product.__tablename__} TO {ROLE}"))
    connection.execute(text(f"GRANT USAGE ON SEQUENCE {Product.__tablename__}_id_seq TO {ROLE}"))


def tenant_of(request: HTTPConnection) -> str:
    """Return who asks."""
    tenant = TENANTS.get(request.headers.get("authorization", "").removeprefix("Bearer "))
    if tenant is None:
        raise HTTPException(401, "Send the token of a tenant.")
    return tenant


def create_app(url: str = "postgresql+asyncpg:///shop") -> FastAPI:
    """Make the application on a database."""
    engine = create_async_engine(url)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with engine.begin() as connection:
            await connection.run_sync(create_tables)
        yield
        await engine.dispose()

    Session = async_sessionmaker(engine, settings={"app.tenant": REQUIRED}, role=ROLE)
    SessionDep = Annotated[AsyncSession, SessionDepends(Session, retry=5, settings={"app.tenant": tenant_of})]
    ReadDep = Annotated[AsyncSession, SessionDepends(Session, preset=READ_ONLY, settings={"app.tenant": tenant_of})]
    app = FastAPI(lifespan=lifespan)
    install(app)

    async def found(session: AsyncSession, product_id: int) -> Product:
        product = await session.get(Product, product_id)
        if product is None:  # or another tenant's, which is the same from here
            raise HTTPException(404)
        return product

    @app.get("/products", response_model=list[ProductOut])
    async def products(session: ReadDep) -> Any:
        return (await session.scalars(select(Product).order_by(Product.id))).all()  # no WHERE: the database has it

    @app.get("/products/{product_id}", response_model=ProductOut)
    async def product(product_id: int, session: ReadDep, response: Response) -> Any:
        read = await found(session, product_id)
        response.headers["ETag"] = etag(read)
        return read

    @app.post("/products", response_model=ProductOut, status_code=201)
    async def add(sent: ProductIn, session: SessionDep, response: Response) -> Any:
        made = Product(name=sent.name, cents=sent.cents)
        session.add(made)
        await session.flush()
        response.headers["ETag"] = etag(made)
        return made

    @app.put("/products/{product_id}", response_model=ProductOut)
    async def edit(
        product_id: int,
        sent: ProductIn,
        session: SessionDep,
        response: Response,
        if_match: Annotated[str | None, Header()] = None,
    ) -> Any:
        if if_match is None:
            raise HTTPException(428, "Send If-Match with the ETag that you have read.")
        edited = await found(session, product_id)
        expect_etag(edited, if_match)
        edited.name, edited.cents = sent.name, sent.cents
        await session.flush()
        response.headers["ETag"] = etag(edited)
        return edited

    @app.get("/report")
    async def report() -> dict[str, int]:
        # For all tenants, and with the rights of the user that connects. Traces and logs show sessionkit.system.
        async with Session.scope(settings=SYSTEM, role=None, name="report", read_only=True) as session:
            counted = select(Product.tenant, func.count()).group_by(Product.tenant)
            return {row[0]: row[1] for row in await session.execute(counted)}

    return app


def __getattr__(name: str) -> FastAPI:
    """Make `app` when a server asks for it, and no database when something else is imported."""
    if name != "app":
        raise AttributeError(name)
    return create_app(os.environ["DATABASE_URL"])
