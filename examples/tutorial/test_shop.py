import pytest
from shop import Order, OutOfStock, Product, Session, mails, order, save, show
from sqlalchemy import select

from sessionkit import VersionConflict

pytestmark = pytest.mark.usefixtures("teapot")


def test_an_order_takes_from_the_stock():
    order("ann", "teapot", 2)
    with Session.scope() as session:
        assert session.get_one(Product, "teapot").stock == 3
    assert mails == ["ann: 2 x teapot"]


def test_nothing_remains_of_an_order_that_is_too_big():
    with pytest.raises(OutOfStock):
        order("ann", "teapot", 99)
    with Session.scope() as session:
        assert session.scalars(select(Order)).all() == []
    assert mails == []


def test_two_clerks_do_not_overwrite_each_other():
    ann, bob = show("teapot"), show("teapot")
    save("teapot", ann["cents"] - 200, ann["version"])
    with pytest.raises(VersionConflict):
        save("teapot", bob["cents"] + 100, bob["version"])


def test_an_order_is_tried_again(fail_commit_with, retry_without_waiting):
    fail_commit_with("SQLITE_BUSY", times=2)  # on PostgreSQL: "40001"
    order("ann", "teapot", 1)
    assert len(retry_without_waiting) == 2
    assert mails == ["ann: 1 x teapot"]


def test_an_order_is_cheap(assert_statements):
    with assert_statements(3):  # a failure shows the statements
        order("ann", "teapot", 1)
