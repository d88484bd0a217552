"""Incremental 4D-Var on the scalable Lorenz-95 problem, in numpy with tangent-linear and adjoint written by hand.

The peer of `l95_fourdvar.py`: what a careful programmer gets without a framework. FFT square root of B, conjugate
gradients with full re-orthogonalisation, everything linearised once per outer loop and kept.

The problem is the 4D-Var case of OOPS (JCSDA/oops, l95/test) tiled to N = 40 k cells, so each cost is k times a known
number: truth and background are 8 with one 9 (cell 9) or one 7 (cell 19) per tile, two steps of dt = 0.0125 before a
window of 16; every second cell is observed at steps 2, 4, ..., 16, rounded to six digits, sigma_o = float32(0.4);
B = 0.36 exp(-d²/2).
"""

import dataclasses

import numpy as np

DT, FORCING, STEPS = 0.0125, 8.0, 16
SIGMA_O, SIGMA_B = float(np.float32(0.4)), 0.6
ENTRIES = tuple(range(2, STEPS + 1, 2))
J_ONE_TILE = (123.85634722309169, 2.92687876281948, 2.66660224862960)
"""J at the background and after each of two outer loops of ten inner steps, for one tile of 40 cells."""


def tendency(x):
    roll = np.roll
    return -roll(x, 2) * roll(x, 1) + roll(x, 1) * roll(x, -1) - x + FORCING


def tangent(x, dx):
    roll = np.roll
    return (roll(dx, -1) - roll(dx, 2)) * roll(x, 1) + (roll(x, -1) - roll(x, 2)) * roll(dx, 1) - dx


def adjoint(x, a):
    roll = np.roll
    t = a * roll(x, 1)
    return roll(t, 1) - roll(t, -2) + roll(a * (roll(x, -1) - roll(x, 2)), -1) - a


def stages(x):
    """The four points of a Runge-Kutta step, and its end."""
    k1 = DT * tendency(x)
    x2 = x + 0.5 * k1
    k2 = DT * tendency(x2)
    x3 = x + 0.5 * k2
    k3 = DT * tendency(x3)
    x4 = x + k3
    return (x, x2, x3, x4), x + (k1 + 2 * k2 + 2 * k3 + DT * tendency(x4)) / 6


def tangent_step(points, dx):
    x1, x2, x3, x4 = points
    k1 = DT * tangent(x1, dx)
    k2 = DT * tangent(x2, dx + 0.5 * k1)
    k3 = DT * tangent(x3, dx + 0.5 * k2)
    k4 = DT * tangent(x4, dx + k3)
    return dx + (k1 + 2 * k2 + 2 * k3 + k4) / 6


def adjoint_step(points, a):
    x1, x2, x3, x4 = points
    k4 = a / 6
    z = DT * adjoint(x4, k4)
    out, k3 = a + z, 2 * k4 + z
    z = DT * adjoint(x3, k3)
    out, k2 = out + z, 2 * k4 + 0.5 * z
    z = DT * adjoint(x2, k2)
    out, k1 = out + z, k4 + 0.5 * z
    return out + DT * adjoint(x1, k1)


def six_digits(y):
    return np.array([float(f"{value:.6g}") for value in y])


@dataclasses.dataclass(frozen=True)
class Problem:
    """Background (n,), observations (8, n / 2) of the cells 0, 2, ..., and the spectrum of B."""

    background: np.ndarray
    y: np.ndarray
    spectrum: np.ndarray


def problem(n: int) -> Problem:
    """The problem with n cells, a multiple of 40."""
    if n % 40:
        raise ValueError(f"`n` is {n}, expected a multiple of 40.")
    truth, background = np.full(40, 8.0), np.full(40, 8.0)
    truth[9], background[19] = 9.0, 7.0
    for _ in range(2):
        truth, background = stages(truth)[1], stages(background)[1]
    observed = []
    for step in range(1, STEPS + 1):
        truth = stages(truth)[1]
        if step in ENTRIES:
            observed.append(np.tile(six_digits(truth[::2]), n // 40))
    distance = np.minimum(np.arange(n), n - np.arange(n)).astype(float)
    row = SIGMA_B**2 * np.exp(-0.5 * distance**2)
    return Problem(np.tile(background, n // 40), np.stack(observed), np.fft.rfft(row).real)


def analyse(case: Problem, n_outer: int = 2, n_inner: int = 10) -> list[float]:
    """J at the background and after each outer loop."""
    n = case.background.size
    amplitude = np.sqrt(np.maximum(case.spectrum, 0))
    L = lambda v: np.fft.irfft(amplitude * np.fft.rfft(v), n)  # noqa: E731  (its own transpose)

    def linearise(x):
        """The points of every step, and the whitened departures."""
        points, departures = [], {}
        for step in range(1, STEPS + 1):
            at, x = stages(x)
            points.append(at)
            if step in ENTRIES:
                departures[step] = (case.y[ENTRIES.index(step)] - x[::2]) / SIGMA_O
        return points, departures

    def G(points, v):
        dx, out = L(v), {}
        for step in range(1, STEPS + 1):
            dx = tangent_step(points[step - 1], dx)
            if step in ENTRIES:
                out[step] = dx[::2] / SIGMA_O
        return out

    def GT(points, w):
        a = np.zeros(n)
        for step in range(STEPS, 0, -1):
            if step in ENTRIES:
                a[::2] += w[step] / SIGMA_O
            a = adjoint_step(points[step - 1], a)
        return L(a)

    def solve(points, b):
        x, r, d, square = np.zeros(n), b, b.copy(), b @ b
        basis = [b / np.sqrt(square)]
        for _ in range(n_inner):
            curved = d + GT(points, G(points, d))
            length = square / (d @ curved)
            x, r = x + length * d, r - length * curved
            for v in basis:
                r = r - (v @ r) * v
            before, square = square, r @ r
            d = r + (square / before) * d
            basis.append(r / np.sqrt(square))
        return x

    chi, x, costs = np.zeros(n), case.background, []
    for outer in range(n_outer + 1):
        points, departures = linearise(x)
        costs.append(0.5 * (chi @ chi) + 0.5 * sum(d @ d for d in departures.values()))
        if outer < n_outer:
            increment = solve(points, GT(points, departures) - chi)
            chi, x = chi + increment, x + L(increment)
    return costs
