"""Further terms of the cost: what else a state, or a trajectory, should satisfy.

    J_c = Σ_i ½‖c_i(x_0 ... x_T)‖²         terms in least-squares form: objects with `residual(trajectory)`
        + Σ_j J_j(x_0 ... x_T, observed)   scalar terms: any `CostFunction`, called as cost(trajectory, observed)

A term sees the trajectory, stacked on a leading axis, or the state where there is a single time; a scalar one also the
observations of its sample (`ObservedEntries`, with `value` and `mask`). Every minimiser takes both kinds but those that
linearise a residual: Gauss-Newton, Levenberg-Marquardt and incremental minimisers, and the Gauss-Newton posterior,
which would have to guess a Hessian for a scalar.
"""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from vardax.types import float_array

__all__ = ["around", "as_penalties", "penalty_costs", "penalty_residual"]

FORMS = "an object with `residual(trajectory)`, or a cost function `cost(trajectory, observed)`"


def as_penalties(terms: Any) -> tuple:
    """One term or several as a tuple, each of them checked."""
    terms = tuple(terms) if isinstance(terms, list | tuple) else (terms,)
    for i, term in enumerate(terms):
        if isinstance(term, type) or not (_has_residual(term) or callable(term)):
            found = f"the class {term.__name__}" if isinstance(term, type) else type(term).__name__
            raise TypeError(f"`terms[{i}]` is {found}, expected {FORMS}.")
        if not _has_residual(term) and not _takes_two(term):
            raise TypeError(
                f"`terms[{i}]` has the signature {inspect.signature(term)}, expected (trajectory, observed): a cost "
                "function is also given the observations of its sample."
            )
    return terms


def around(term: Any, background: PyTree[Array]) -> Any:
    """A term as it is for a sample of this background: what it says itself (`around`), else the same for all."""
    bind = getattr(term, "around", None)
    return term if bind is None else bind(background)


def _has_residual(term: Any) -> bool:
    return callable(getattr(term, "residual", None))


def _takes_two(term: Any) -> bool:
    try:
        inspect.signature(term).bind(None, None)
    except TypeError:
        return False
    except ValueError:  # a builtin without a signature
        return True
    return True


def penalty_residual(term: Any, trajectory: PyTree[Array]) -> PyTree[Array]:
    """c(x_0 ... x_T), or a `TypeError` for a scalar cost."""
    if not _has_residual(term):
        raise TypeError(
            f"a further term of the cost ({getattr(term, '__name__', type(term).__name__)}) is a scalar, and a "
            "least-squares or incremental minimiser, or a Gauss-Newton posterior, linearises a residual; give an "
            "object with `residual(trajectory)`, for J_c = ½‖residual‖², or use a minimiser of the scalar cost, such "
            "as the default L-BFGS."
        )
    return jax.tree.map(float_array, term.residual(trajectory))


def penalty_costs(terms: tuple, trajectory: PyTree[Array], observed: Any) -> Float[Array, ""]:
    """J_c, 0 where there are no terms."""
    costs = [_cost(term, trajectory, observed) for term in terms]
    if not costs:
        return jnp.zeros(())
    dtype = jnp.result_type(*costs)
    return functools.reduce(jnp.add, [cost.astype(dtype) for cost in costs])


def _cost(term: Any, trajectory: PyTree[Array], observed: Any) -> Float[Array, ""]:
    if _has_residual(term):
        squares = [jnp.sum(leaf**2) for leaf in jax.tree.leaves(penalty_residual(term, trajectory))]
        dtype = jnp.result_type(*squares)
        return 0.5 * functools.reduce(jnp.add, [square.astype(dtype) for square in squares])
    cost = float_array(term(trajectory, observed))
    if cost.shape != ():
        raise ValueError(
            f"a further term of the cost ({getattr(term, '__name__', type(term).__name__)}) gives shape {cost.shape}, "
            "expected a scalar."
        )
    return cost
