"""A shop with FastAPI: clients edit products with ETag and If-Match.

Run uvicorn --app-dir examples fastapi_shop:app, open http://127.0.0.1:8000 in two tabs, and change the price in both.
"""

# No `from __future__ import annotations`: FastAPI reads the annotations of endpoints that are defined in a function.

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Header, HTTPException, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict
from shop import PAGE, Product, create_tables
from sqlalchemy import create_engine, make_url, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from sessionkit import READ_ONLY, async_sessionmaker, etag, expect_etag, sqlite
from sessionkit.integrations.fastapi import SessionDepends, install


class ProductIn(BaseModel):
    """What a client sends."""

    name: str
    cents: int


class ProductOut(ProductIn):
    """What a client sees."""

    model_config = ConfigDict(from_attributes=True)
    id: int


SYNC_DRIVERS = {"sqlite+aiosqlite": "sqlite", "postgresql+asyncpg": "postgresql+psycopg"}


def create_app(url: str = "sqlite+aiosqlite:///shop.db") -> FastAPI:
    """Return the application for a database."""
    engine = create_async_engine(url)
    if engine.dialect.name == "sqlite":
        sqlite.configure(engine)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await engine.dispose()

    given = make_url(url)
    tables = create_engine(given.set(drivername=SYNC_DRIVERS[given.drivername]))
    create_tables(tables)
    tables.dispose()
    Session = async_sessionmaker(engine)
    SessionDep = Annotated[AsyncSession, SessionDepends(Session, retry=5)]
    ReadDep = Annotated[AsyncSession, SessionDepends(Session, preset=READ_ONLY)]
    app = FastAPI(lifespan=lifespan)
    # A client that sends a new product twice adds it once. Who sends it is here the address; where users log in, their name.
    install(app, idempotency_header="Idempotency-Key", idempotency_caller=lambda request: request.client.host)

    async def found(session: AsyncSession, product_id: int) -> Product:
        product = await session.get(Product, product_id)
        if product is None:
            raise HTTPException(404)
        return product

    @app.get("/", response_class=HTMLResponse)
    async def page() -> str:
        return PAGE

    @app.get("/products", response_model=list[ProductOut])
    async def products(session: ReadDep) -> Any:
        return (await session.scalars(select(Product).order_by(Product.id))).all()

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

    return app


def __getattr__(name: str) -> FastAPI:
    """Make `app` when a server asks for it; importing other names from here touches no database."""
    if name != "app":
        raise AttributeError(name)
    return create_app()
