import pytest
from shop import Base, Product, Session, engine, mails


@pytest.fixture(scope="session", autouse=True)
def _tables():
    Base.metadata.create_all(engine)
    yield
    engine.dispose()


@pytest.fixture
def sessionkit_factories():
    return [Session]


@pytest.fixture(autouse=True)
def _isolated(sessionkit_isolation):
    mails.clear()


@pytest.fixture
def teapot():
    with Session.scope() as session:
        session.add(Product(name="teapot", cents=1900, stock=5))
