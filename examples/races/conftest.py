import pytest
from accounts import Base, Session, engine


@pytest.fixture(scope="session", autouse=True)
def _tables():
    Base.metadata.create_all(engine)
    yield
    engine.dispose()


@pytest.fixture
def sessionkit_factories():
    return [Session]
