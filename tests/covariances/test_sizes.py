"""Sizes up to which a matrix is built."""

import pytest

from vardax.covariances import DENSE_LIMIT
from vardax.covariances.sizes import require_dense_size


def test_the_limit_is_allowed_and_more_is_refused_with_a_remedy():
    require_dense_size("half", DENSE_LIMIT)
    with pytest.raises(ValueError, match=rf"half needs a dense matrix of {DENSE_LIMIT + 1} rows.*buy memory"):
        require_dense_size("half", DENSE_LIMIT + 1, "buy memory")
