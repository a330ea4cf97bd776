"""What several tests of this room share: one small network, trained once."""

import pytest

from fakes.trained_digits import build


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    return build(tmp_path_factory.mktemp("digits"))
