import pytest
from accounts import Account, Session, Wallet, withdraw_locked, withdraw_serializable, withdraw_versioned


def fill():
    with Session.scope() as session:
        session.add(Account(owner="ann", balance=100))
        session.add(Wallet(owner="ann", balance=100))


@pytest.mark.parametrize("withdraw", [withdraw_locked, withdraw_versioned, withdraw_serializable])
def test_the_account_pays_what_it_holds(races, withdraw):
    found = races(
        lambda: withdraw("ann", 70),
        lambda: withdraw("ann", 70),
        setup=fill,
    )
    found.assert_serial()


def test_three_at_once(races):
    def at_least_one_is_paid(schedule):
        assert any(outcome.value == "paid" for outcome in schedule.outcomes)

    found = races(
        *[lambda: withdraw_locked("ann", 70)] * 3,
        setup=fill,
        check=at_least_one_is_paid,
    )
    found.assert_none()
