from accounts import Account, Session, withdraw


def fill():
    with Session.scope() as session:
        session.add(Account(owner="ann", balance=100))


def test_the_account_pays_what_it_holds(races):
    found = races(
        lambda: withdraw("ann", 70),
        lambda: withdraw("ann", 70),
        setup=fill,
    )
    found.assert_serial()
