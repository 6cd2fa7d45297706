"""The finished shop of the tutorial."""

from sqlalchemy import ForeignKey, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sessionkit import Versioned, bulk, expect_version, on_commit, sessionmaker, version_of

engine = create_engine("sqlite:///shop.db")
Session = sessionmaker(engine)
mails = []


class Base(DeclarativeBase):
    pass


class Product(Versioned, Base):
    __tablename__ = "product"

    name: Mapped[str] = mapped_column(primary_key=True)
    cents: Mapped[int]
    stock: Mapped[int] = mapped_column(default=0)


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str]
    product: Mapped[str] = mapped_column(ForeignKey("product.name"))
    amount: Mapped[int]


# Orders: pages 2 and 4


class OutOfStock(Exception):
    pass


@Session.scope
def take(session, name, amount):
    product = session.get_one(Product, name)
    if product.stock < amount:
        raise OutOfStock(f"{amount} of {name} wanted, {product.stock} left")
    product.stock -= amount
    return product


@Session.scope(retry=5)
def order(session, customer, name, amount):
    take(name, amount)
    session.add(Order(customer=customer, product=name, amount=amount))
    on_commit(lambda: mails.append(f"{customer}: {amount} x {name}"))


@Session.scope(retry=5)
def order_with_cake(session, customer, name, amount):
    order(customer, name, amount)
    try:
        with Session.scope(propagation="savepoint"):
            take("cake", 1)
    except OutOfStock:
        pass


# A form that two people edit: page 3


@Session.scope
def show(session, name):
    product = session.get_one(Product, name)
    return {"cents": product.cents, "version": version_of(product)}


@Session.scope
def save(session, name, cents, version):
    product = session.get_one(Product, name)
    expect_version(product, version)
    product.cents = cents


# The catalogue: page 5


@Session.scope
def load(session, rows):
    return bulk.insert(session, Product, rows)


@Session.scope(retry=5)
def load_prices(session, rows):
    return bulk.upsert(
        session,
        Product,
        rows,
        match=[Product.name],
        update=[Product.cents],
        when_changed=True,
    )
