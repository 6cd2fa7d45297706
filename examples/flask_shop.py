"""A shop with Flask: clients edit products with ETag and If-Match.

Run python examples/flask_shop.py, open http://127.0.0.1:5000 in two tabs, and change the price in both.
"""

from __future__ import annotations

from flask import Flask, abort, jsonify, request
from flask.typing import ResponseReturnValue
from shop import PAGE, Product, create_tables
from sqlalchemy import create_engine, select

from sessionkit import etag, expect_etag, sessionmaker, sqlite
from sessionkit.integrations.flask import SessionKit


def create_app(url: str = "sqlite:///shop.db") -> Flask:
    """Return the application for a database."""
    engine = create_engine(url)
    if engine.dialect.name == "sqlite":
        sqlite.configure(engine)
    create_tables(engine)
    app = Flask(__name__)
    kit = SessionKit(
        app,
        sessionmaker(engine),
        retry=5,
        # A client that sends a new product twice adds it once. Who sends it is here the address; where users log in, their name.
        idempotency_header="Idempotency-Key",
        idempotency_caller=lambda request: request.remote_addr,
    )

    @app.get("/")
    def page() -> str:
        return PAGE

    @app.get("/products")
    def products() -> ResponseReturnValue:
        return jsonify([product.as_json() for product in kit.session.scalars(select(Product).order_by(Product.id))])

    @app.get("/products/<int:product_id>")
    def product(product_id: int) -> ResponseReturnValue:
        found = kit.session.get(Product, product_id) or abort(404)
        return jsonify(found.as_json()), {"ETag": etag(found)}

    @app.post("/products")
    def add() -> ResponseReturnValue:
        made = Product(name=request.json["name"], cents=request.json["cents"])
        kit.session.add(made)
        kit.session.flush()
        return jsonify(made.as_json()), 201, {"ETag": etag(made)}

    @app.put("/products/<int:product_id>")
    def edit(product_id: int) -> ResponseReturnValue:
        found = kit.session.get(Product, product_id) or abort(404)
        expect_etag(found, request.headers.get("If-Match") or abort(428))
        found.name, found.cents = request.json["name"], request.json["cents"]
        kit.session.flush()  # sets the new version; COMMIT follows after this view and the after_request functions
        return jsonify(found.as_json()), {"ETag": etag(found)}

    return app


if __name__ == "__main__":
    create_app().run()
