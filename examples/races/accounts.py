"""Accounts from which two people withdraw at once: one wrong way, and three right ones."""

from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sessionkit import Versioned, locks, sessionmaker

engine = create_engine("postgresql+psycopg:///bank")
Session = sessionmaker(engine)


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "account"

    owner: Mapped[str] = mapped_column(primary_key=True)
    balance: Mapped[int]


def take(account, amount):
    if account.balance < amount:
        return "refused"
    account.balance -= amount
    return "paid"


@Session.scope
def withdraw(session, owner, amount):
    return take(session.get_one(Account, owner), amount)


class Wallet(Versioned, Base):
    __tablename__ = "wallet"

    owner: Mapped[str] = mapped_column(primary_key=True)
    balance: Mapped[int]


@Session.scope
def withdraw_locked(session, owner, amount):
    return take(locks.lock(session, Account, owner), amount)


@Session.scope(retry=5)
def withdraw_versioned(session, owner, amount):
    return take(session.get_one(Wallet, owner), amount)


@Session.scope(isolation="SERIALIZABLE", retry=5)
def withdraw_serializable(session, owner, amount):
    return take(session.get_one(Account, owner), amount)
