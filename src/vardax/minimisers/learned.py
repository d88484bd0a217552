"""`LearnedMinimiser`: descent whose step is made by a network from the gradient, the learned solver of 4DVarNet.

    g_k = ∇J(x_k) / s,     s = rms(∇J(x_0)), or 1 without normalisation
    (u_k, h_{k+1}) = modulator(g_k, x_k, h_k)
    x_{k+1} = x_k + rule(alpha u_k, ∇J(x_k), k),      k = 0 .. n - 1

The memory h is what makes it more than a step size: a ConvLSTM learns momentum and preconditioning. The number of steps
is part of what was trained, so it makes exactly `n_steps` of them, unless a tolerance is given. The scale s makes a
trained modulator independent of the units of the data and of how many points were observed. It is that of the first
gradient, so that gradients still shrink on the way to a minimum.

An optimistix minimiser: `optimistix.minimise(fn, LearnedMinimiser(modulator), x_0, max_steps=None)` runs it on any
cost, with any adjoint. `stats["record"]` tells what happened, `stats["memory"]` is h_n.

Fablet, R. et al. (2021). Learning variational data assimilation models and solvers. JAMES 13, e2021MS002572.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Bool, Float, Int, PyTree

from vardax.adjoints.direct import stop_gradient

__all__ = [
    "AbstractStepRule",
    "AnnealedStep",
    "ConstantStep",
    "LearnedMinimiser",
    "LearnedRecord",
    "LearnedState",
    "gradient_scale",
    "modulated_step",
]


class AbstractStepRule(eqx.Module):
    """How the step is made of the update and the gradient. `steady`: the same at each iteration."""

    steady: eqx.AbstractClassVar[bool]

    @abc.abstractmethod
    def __call__(self, update: PyTree[Array], gradient: PyTree[Array], k: Int[Array, ""], n: int) -> PyTree[Array]:
        """The step from x_k, of n steps."""


class ConstantStep(AbstractStepRule):
    """x_{k+1} = x_k + u_k."""

    steady: ClassVar[bool] = True

    def __call__(self, update: PyTree[Array], gradient: PyTree[Array], k: Int[Array, ""], n: int) -> PyTree[Array]:
        return update


class AnnealedStep(AbstractStepRule):
    """x_{k+1} = x_k + u_k / (k + 1) - gradient_step (k + 1) / n ∇J(x_k): first the network, in the end the gradient.

    The rule of the PyTorch programs of 4DVarNet. The gradient is not normalised.
    """

    steady: ClassVar[bool] = False

    gradient_step: float = eqx.field(static=True, default=0.0)

    def __call__(self, update: PyTree[Array], gradient: PyTree[Array], k: Int[Array, ""], n: int) -> PyTree[Array]:
        def one(u: Array, g: Array) -> Array:
            count = (k + 1).astype(u.dtype)
            return u / count - self.gradient_step * count / n * g

        return jax.tree.map(one, update, gradient)


class LearnedRecord(eqx.Module):
    """What is known of the run: J, ‖∇J‖ and what J returned beside (`aux`), at each iterate a step was made from.

    `change` is the size of the last step relative to the iterate, `non_finite` whether a step had to be refused.
    """

    cost: Float[Array, " n"]
    gradient_norm: Float[Array, " n"]
    aux: PyTree[Array]
    change: Float[Array, ""]
    n_steps: Int[Array, ""]
    non_finite: Bool[Array, ""]


class LearnedState(eqx.Module):
    """The memory of the modulator, the scale of gradients, and the record."""

    memory: PyTree[Array]
    scale: Float[Array, ""]
    record: LearnedRecord


def _all_finite(tree: PyTree[Array]) -> Bool[Array, ""]:
    return jnp.all(jnp.asarray([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def gradient_scale(gradient: PyTree[Array]) -> Float[Array, ""]:
    """The root mean square of a gradient, 1 for one that is zero."""
    size = optx.rms_norm(gradient)
    return jnp.where(size > 0, size, jnp.ones_like(size))


def modulated_step(
    solver: "LearnedMinimiser",
    gradient: PyTree[Array],
    y: PyTree[Array],
    memory: PyTree[Array],
    scale: Float[Array, ""],
    k: Int[Array, ""],
) -> tuple[PyTree[Array], PyTree[Array]]:
    """(x_{k+1}, h_{k+1})."""
    shown = jax.tree.map(lambda g: g / scale.astype(g.dtype), gradient) if solver.normalises else gradient
    update, memory = solver.grad_mod(shown, y, memory)
    if not solver.scaled_by_itself:
        update = jax.tree.map(lambda u: solver.alpha * u, update)
    step = solver.rule(update, gradient, k, solver.n_steps)
    return jax.tree.map(lambda x, s: x + s.astype(x.dtype), y, step), memory


class LearnedMinimiser(optx.AbstractMinimiser):
    """Descent by a gradient modulator: `modulator(gradient, state, memory) -> (update, memory)`.

    - `n_steps`: how many steps are made; `optimistix.minimise` wants `max_steps` at least that large.
    - `alpha`: the factor of the update. A modulator with `scaled_by_itself = True` (`IdentityGradMod`) is not scaled.
    - `normalize_grad`: None normalises for all modulators but those that scale themselves.
    - `rule`: `ConstantStep()`, or `AnnealedStep(gradient_step)`.
    - `rtol`, `atol`: stop earlier, once the step is smaller than atol + rtol · the size of x. 0: never.
    - `norm`: how the sizes of steps and states are measured, by default as root mean squares.

    A step that is not finite is refused: the iterate before it is returned, and `record.non_finite` says so.

    >>> from vardax.grad_mod import IdentityGradMod
    >>> solver = LearnedMinimiser(IdentityGradMod(0.25), n_steps=30)
    >>> solution = optx.minimise(lambda x, _: jnp.sum((x - 3.0) ** 2), solver, jnp.zeros(2))
    >>> solution.value.round(4).tolist()
    [3.0, 3.0]
    """

    grad_mod: Any
    n_steps: int = eqx.field(static=True, default=15)
    alpha: float = eqx.field(static=True, default=0.2)
    normalize_grad: bool | None = eqx.field(static=True, default=None)
    rule: AbstractStepRule = ConstantStep()
    rtol: float = eqx.field(static=True, default=0.0)
    atol: float = eqx.field(static=True, default=0.0)
    norm: Callable[[PyTree], Array] = eqx.field(static=True, default=optx.rms_norm)

    def __check_init__(self) -> None:
        if not callable(self.grad_mod) or isinstance(self.grad_mod, type):
            raise TypeError(
                f"LearnedMinimiser: `grad_mod` is {self.grad_mod!r}, expected a gradient modulator "
                "(gradient, state, memory) -> (update, memory), such as vardax.grad_mod.ConvLSTMGradMod1D()."
            )
        if self.n_steps < 1:
            raise ValueError(f"LearnedMinimiser: `n_steps` is {self.n_steps}, expected at least 1.")

    @property
    def scaled_by_itself(self) -> bool:
        """Whether the modulator gives the step itself."""
        return getattr(self.grad_mod, "scaled_by_itself", False)

    @property
    def normalises(self) -> bool:
        return not self.scaled_by_itself if self.normalize_grad is None else self.normalize_grad

    def first_memory(self, y: PyTree[Array]) -> PyTree[Array]:
        """h_0: what `init_carry` of the modulator gives, None without one."""
        start = getattr(self.grad_mod, "init_carry", None)
        return None if start is None else start(y)

    def init(
        self, fn: Any, y: PyTree, args: PyTree, options: dict, f_struct: Any, aux_struct: Any, tags: frozenset
    ) -> LearnedState:
        del fn, args, options, tags
        dtype = jnp.result_type(*jax.tree.leaves(y))
        rows = lambda s: jnp.full((self.n_steps, *s.shape), _missing(s.dtype), s.dtype)  # noqa: E731
        record = LearnedRecord(
            cost=rows(f_struct),
            gradient_norm=rows(jax.ShapeDtypeStruct((), dtype)),
            aux=jax.tree.map(rows, aux_struct),
            change=jnp.asarray(jnp.inf, dtype),
            n_steps=jnp.asarray(0),
            non_finite=jnp.asarray(False),
        )
        return LearnedState(self.first_memory(y), jnp.ones((), dtype), record)

    def step(
        self, fn: Any, y: PyTree, args: PyTree, options: dict, state: LearnedState, tags: frozenset
    ) -> tuple[PyTree, LearnedState, PyTree]:
        del options, tags
        (cost, aux), gradient = jax.value_and_grad(lambda x: fn(x, args), has_aux=True)(y)
        k, scale = state.record.n_steps, state.scale
        if self.normalises:
            scale = jnp.where(k == 0, gradient_scale(gradient).astype(scale.dtype), scale)
        stepped, memory = modulated_step(self, gradient, y, state.memory, scale, k)
        usable = jnp.isfinite(cost) & _all_finite(stepped)
        kept = jax.tree.map(lambda new, old: jnp.where(usable, new, old), stepped, y)
        record = _written(state.record, cost, aux, gradient, y, stepped, usable, self.norm)
        return kept, LearnedState(memory, scale, record), aux

    def terminate(
        self, fn: Any, y: PyTree, args: PyTree, options: dict, state: LearnedState, tags: frozenset
    ) -> tuple[Bool[Array, ""], optx.RESULTS]:
        del fn, args, options, tags
        record = state.record
        small = record.change < self.atol + self.rtol * self.norm(stop_gradient(y)).astype(record.change.dtype)
        return (record.n_steps >= self.n_steps) | small | record.non_finite, optx.RESULTS.successful

    def postprocess(
        self,
        fn: Any,
        y: PyTree,
        aux: PyTree,
        args: PyTree,
        options: dict,
        state: LearnedState,
        tags: frozenset,
        result: optx.RESULTS,
    ) -> tuple[PyTree, PyTree, dict[str, Any]]:
        size = self.norm(stop_gradient(y)).astype(state.record.change.dtype)
        relative = state.record.change / jnp.where(size > 0, size, jnp.ones_like(size))
        record = eqx.tree_at(lambda r: r.change, state.record, relative)
        return y, aux, {"record": record, "memory": state.memory}


def _missing(dtype: Any) -> Any:
    """What stands in the rows of steps that were not made."""
    return jnp.nan if jnp.issubdtype(dtype, jnp.inexact) else 0


def _written(
    record: LearnedRecord,
    cost: Array,
    aux: PyTree[Array],
    gradient: PyTree[Array],
    y: PyTree[Array],
    stepped: PyTree[Array],
    usable: Bool[Array, ""],
    size_of: Callable[[PyTree], Array],
) -> LearnedRecord:
    """The record with the row of this step, kept out of derivatives. `change` is the size of the step until the end."""
    k = record.n_steps
    cost, aux, gradient, y, stepped = stop_gradient((cost, aux, gradient, y, stepped))
    norm = optx.two_norm(gradient).astype(record.gradient_norm.dtype)
    change = size_of(jax.tree.map(jnp.subtract, stepped, y)).astype(record.change.dtype)
    return LearnedRecord(
        cost=record.cost.at[k].set(cost),
        gradient_norm=record.gradient_norm.at[k].set(norm),
        aux=jax.tree.map(lambda rows, row: rows.at[k].set(row), record.aux, aux),
        change=jnp.where(usable, change, record.change),
        n_steps=k + 1,
        non_finite=record.non_finite | ~usable,
    )
