"""B⁻¹ v and log|B| from products with B alone."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

__all__ = ["conjugate_gradients", "lanczos_logdet"]

Product = Callable[[Array], Array]
Carry = tuple[Array, Array, Array]


def conjugate_gradients(
    product: Product, vector: Float[Array, "..."], preconditioner: Product, *, tol: float, max_steps: int
) -> tuple[Float[Array, "..."], Float[Array, ""]]:
    """x with ‖A x − b‖ <= tol ‖b‖, and the relative residual that was reached, ‖A x − b‖ / ‖b‖.

    `preconditioner` multiplies with something like A⁻¹, symmetric positive definite.
    """
    solution, _ = jax.scipy.sparse.linalg.cg(product, vector, tol=tol, maxiter=max_steps, M=preconditioner)
    norm, misfit = jnp.linalg.norm(jnp.ravel(vector)), jnp.linalg.norm(jnp.ravel(product(solution) - vector))
    return solution, misfit / jnp.where(norm > 0, norm, jnp.ones_like(norm))


def lanczos_logdet(
    product: Product, start: jax.ShapeDtypeStruct, key: PRNGKeyArray, *, n_probes: int, n_steps: int
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(estimate of log|A|, its standard error), by stochastic Lanczos quadrature.

    log|A| = tr log A = E[zᵀ log(A) z] for random signs z, and zᵀ log(A) z is the quadrature whose nodes are the
    eigenvalues of the tridiagonal Lanczos matrix started at z. Exact to rounding in the quadrature when `n_steps` is
    large enough for the condition number of A; the standard error says how far the mean over `n_probes` may be off.
    Ubaru, Chen and Saad, SIAM J. Matrix Anal. Appl. 38 (2017).
    """

    def quadrature(probe_key: PRNGKeyArray) -> Array:
        probe = jax.random.rademacher(probe_key, start.shape, start.dtype)
        nodes, vectors = jnp.linalg.eigh(_tridiagonal(product, probe, n_steps))
        return probe.size * jnp.sum(vectors[0] ** 2 * jnp.log(jnp.maximum(nodes, jnp.finfo(start.dtype).tiny)))

    values = jax.lax.map(quadrature, jax.random.split(key, n_probes))
    return jnp.mean(values), jnp.std(values, ddof=1) / jnp.sqrt(jnp.array(n_probes, start.dtype))


def _tridiagonal(product: Product, probe: Array, n_steps: int) -> Float[Array, "steps steps"]:
    """The Lanczos matrix of A started at `probe`, with full reorthogonalisation; zero beyond a breakdown."""

    def step(carry: Carry, number: Array) -> tuple[Carry, tuple[Array, Array]]:
        basis, vector, alive = carry
        basis = basis.at[number].set(vector)
        image = product(vector.reshape(probe.shape)).ravel()
        alpha = jnp.vdot(vector, image)
        for _ in range(2):
            image = image - basis.T @ (basis @ image)
        beta = jnp.linalg.norm(image)
        alive = alive & (beta > jnp.finfo(probe.dtype).eps * jnp.abs(alpha))
        vector = jnp.where(alive, image / jnp.where(alive, beta, jnp.ones_like(beta)), jnp.zeros_like(image))
        return (basis, vector, alive), (alpha, jnp.where(alive, beta, jnp.zeros_like(beta)))

    n_steps = min(n_steps, probe.size)
    first = probe.ravel() / jnp.linalg.norm(probe.ravel())
    start = (jnp.zeros((n_steps, probe.size), probe.dtype), first, jnp.array(True))
    _, (alphas, betas) = jax.lax.scan(step, start, jnp.arange(n_steps))
    return jnp.diag(alphas) + jnp.diag(betas[:-1], 1) + jnp.diag(betas[:-1], -1)
