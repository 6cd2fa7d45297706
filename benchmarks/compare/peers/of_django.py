"""Django: models and `transaction.atomic()`."""

from __future__ import annotations

import threading
import unittest
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import django
from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, connections, models, transaction

from benchmarks.compare.peer import Feature, Missing, Peer
from benchmarks.compare.peers._sqlalchemy import LOCK_WAIT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import URL

DOCS = "https://docs.djangoproject.com/en/6.1"
if not settings.configured:
    settings.configure(
        DATABASES={DEFAULT_DB_ALIAS: {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}, USE_TZ=True
    )
    django.setup()


class Account(models.Model):
    id = models.IntegerField(primary_key=True)
    name = models.CharField(max_length=50, unique=True)
    balance = models.IntegerField()
    version = models.IntegerField(default=1)

    class Meta:
        app_label = "comparison"
        db_table = "account"
        managed = False


class Item(models.Model):
    code = models.IntegerField(unique=True)
    name = models.CharField(max_length=50)
    price = models.FloatField()
    id = models.AutoField(primary_key=True)

    class Meta:
        app_label = "comparison"
        db_table = "item"
        managed = False


class DjangoWork:
    def add(self, number: int, name: str, balance: int = 0) -> None:
        Account.objects.create(id=number, name=name, balance=balance)

    def get(self, number: int, *, versioned: bool = False) -> Any:
        return Account.objects.get(pk=number)

    def save(self, row: Any) -> None:
        row.save()

    def total(self) -> int:
        return int(Account.objects.aggregate(total=models.Sum("balance"))["total"])

    def sql(self, statement: str) -> Any:
        with connections[DEFAULT_DB_ALIAS].cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchone()[0] if cursor.description else None


class Django(Peer):
    name = "Django"
    docs = f"{DOCS}/topics/db/transactions/"
    packages = ("django",)
    features = {
        "unit": Feature("django.db.transaction:atomic", "`atomic()`", docs),
        "decorator": Feature("django.db.transaction:atomic", "`@atomic`", docs),
        "joins": Feature("django.db.transaction:atomic", "in a savepoint, or joins", docs),
        "savepoint": Feature("django.db.transaction:atomic", "`atomic()` inside", docs),
        "isolation": Feature(
            "django.db.backends.postgresql.psycopg_any:IsolationLevel", "per database", f"{DOCS}/ref/databases/"
        ),
        "hooks": Feature("django.db.transaction:on_commit", "`on_commit()`", docs),
        "ambient": Feature("django.db:connection", "the connection", docs),
        "upsert": Feature("django.db.models:QuerySet.bulk_create", "`bulk_create()`", f"{DOCS}/ref/models/querysets/"),
        "readers": Feature("django.db:router", "database routers", f"{DOCS}/topics/db/multi-db/"),
        "tests": Feature("django.test:TestCase", "`TestCase`", f"{DOCS}/topics/testing/tools/"),
    }

    def __init__(self, url: URL, *, serializable: bool = False) -> None:
        self._settings = connections[DEFAULT_DB_ALIAS].settings_dict
        options: dict[str, Any] = {}
        if url.get_backend_name() == "sqlite":
            new: dict[str, Any] = {"ENGINE": "django.db.backends.sqlite3", "NAME": url.database}
            options = {"timeout": LOCK_WAIT}
            if serializable:
                options["transaction_mode"] = "IMMEDIATE"
        else:
            new = {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": url.database,
                "USER": url.username,
                "PASSWORD": url.password,
                "HOST": url.host,
                "PORT": url.port,
            }
            if serializable:
                from django.db.backends.postgresql.psycopg_any import IsolationLevel

                options["isolation_level"] = IsolationLevel.SERIALIZABLE
        # A new database for the same alias: settings are read once, so the connection must be made again.
        connections.settings[DEFAULT_DB_ALIAS] = {**self._settings, **new, "OPTIONS": options}
        self._forget()

    @staticmethod
    def _forget() -> None:
        connections.close_all()
        if hasattr(connections._connections, DEFAULT_DB_ALIAS):
            del connections[DEFAULT_DB_ALIAS]

    def close(self) -> None:
        connections.close_all()

    def context(self) -> AbstractContextManager[Any]:
        return _closing_after() if threading.current_thread() is not threading.main_thread() else super().context()

    @contextmanager
    def unit(self) -> Iterator[DjangoWork]:
        with transaction.atomic():
            yield DjangoWork()

    def savepoint(self, work: Any) -> AbstractContextManager[Any]:
        return transaction.atomic()  # type: ignore[no-any-return]

    def after_commit(self, work: Any, hook: Callable[[], object]) -> None:
        transaction.on_commit(hook)

    @property
    def has_version(self) -> bool:
        return False

    def ambient(self) -> object:
        Account.objects.exists()
        return connections[DEFAULT_DB_ALIAS]

    def isolated_test(self, test: Callable[[], None]) -> None:
        from django.test import TestCase

        class Test(TestCase):
            def test(self) -> None:
                test()

        result = unittest.TestResult()
        unittest.TestSuite([Test("test")]).run(result)
        for _, trace in (*result.errors, *result.failures):
            raise AssertionError(trace)

    def open_async(self) -> None:
        raise Missing("no transactions in async code", f"{DOCS}/topics/async/")

    def empty(self) -> None:
        with transaction.atomic():
            pass

    def one_row(self, number: int) -> None:
        with transaction.atomic():
            Item.objects.create(code=number, name="item", price=1.5)

    def insert(self, rows: Sequence[dict[str, Any]]) -> list[int]:
        with transaction.atomic():
            return [item.pk for item in Item.objects.bulk_create([Item(**row) for row in rows])]

    def upsert(self, rows: Sequence[dict[str, Any]]) -> list[int]:
        with transaction.atomic():
            done = Item.objects.bulk_create(
                [Item(**row) for row in rows],
                update_conflicts=True,
                unique_fields=["code"],
                update_fields=["name", "price"],
            )
            return [item.pk for item in done]


@contextmanager
def _closing_after() -> Iterator[None]:
    """What Django does after a request: give back this thread's connection."""
    try:
        yield
    finally:
        connections.close_all()


PEER = Django
