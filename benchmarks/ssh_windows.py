"""Sea surface height of a quasi-geostrophic ocean, the altimeters that see it, and the scores of a map.

The ocean: one equivalent-barotropic layer on a doubly periodic plane of 1280 km, 64x64 cells of 20 km, at 43° N, with a
deformation radius of 50 km. Random vorticity, new each day, at wavelengths near 180 km keeps it turbulent against drag
and viscosity; after 300 days its energy is level. The height is eta = f psi / g, one map a day.

Four altimeters with orbits of their own: an ascending and a descending pass for each revolution, those that meet the
plane are seen in one cell of each row and shift from day to day, as the Earth turns below. About 7 % of the cells are
seen in a day, with white noise of `NOISE` times the standard deviation of the height.

One trajectory: its first part is for fitting and training, the last one, 60 days later, for testing.
"""

import dataclasses

import numpy as np

SIZE, CELL_KM = 64, 20.0
NOISE = 0.1
SPIN_UP, GAP, STEPS_PER_DAY = 300, 60, 12
FORCED, FORCING = 1.8, 0.35
EARTH_KM, TO_CM = 40_000 * np.cos(np.deg2rad(43.0)), 100 * 1e-4 / 9.81 * 1e10 / 86_400
ORBITS = ((12.81, 0.55, 0.0), (14.27, 0.25, 0.31), (13.75, 0.40, 0.62), (14.53, 0.20, 0.87))
"""Revolutions a day, km to the east for a km to the north, phase."""


@dataclasses.dataclass(frozen=True)
class Record:
    """Daily maps (days, y, x) and what was observed of them, NaN elsewhere, both in units of `sd_cm`."""

    truth: np.ndarray
    observations: np.ndarray
    sd_cm: float

    def part(self, days: slice) -> "Record":
        return dataclasses.replace(self, truth=self.truth[days], observations=self.observations[days])

    def interpolated(self) -> np.ndarray:
        """Linear in time in each cell, level beyond its first and last observation, 0 where there is none."""
        days, maps = np.arange(len(self.truth)), np.zeros_like(self.truth)
        for y, x in np.ndindex(SIZE, SIZE):
            seen = np.flatnonzero(np.isfinite(self.observations[:, y, x]))
            if len(seen):
                maps[:, y, x] = np.interp(days, seen, self.observations[seen, y, x])
        return maps

    def scores(self, maps) -> dict[str, float]:
        """Of maps (days, y, x): μ, σ, effective resolutions in km and days, root mean square error in cm."""
        import jax.numpy as jnp

        from vardax.metrics import effective_resolutions, rmse_score

        maps = np.asarray(maps, np.float32)
        series = np.asarray(rmse_score(maps, self.truth))
        error, signal = (_spectrum(jnp.asarray(field)) for field in (maps - self.truth, self.truth))
        wavelength, period = effective_resolutions(error, signal)
        rmse = self.sd_cm * np.sqrt(np.mean((maps - self.truth) ** 2, dtype=float))
        return {
            "mu": round(float(series.mean()), 3),
            "sigma": round(float(series.std()), 3),
            "lambda_x_km": round(float(wavelength), 1),
            "lambda_t_days": round(float(period), 2),
            "rmse_cm": round(float(rmse), 3),
        }


def _spectrum(maps):
    """The mean over latitudes of zonal-wavenumber/frequency spectra, at the wavenumbers that the ocean has.

    As in the challenges, but not tapered along x, where the plane is periodic: what would leak from the long waves into
    those that the model does not have is less in the error than in the truth, and looks like resolution.
    """
    from vardax.metrics import WavenumberFrequencySpectrum, hann, no_taper, remove_mean, wavenumber_frequency_spectrum

    along = lambda n: no_taper(n) if n == SIZE else hann(n)  # noqa: E731
    full = wavenumber_frequency_spectrum(maps, 1.0, CELL_KM, detrend=remove_mean, taper=along)
    resolved = (SIZE - 1) // 3 + 1
    return WavenumberFrequencySpectrum(full.frequency, full.wavenumber[:resolved], full.density.mean(0)[:, :resolved])


def records(seed: int, n_train: int = 1500, n_test: int = 320) -> tuple[Record, Record]:
    """(training, test) records."""
    rng = np.random.default_rng(seed)
    height = sea_surface(seed, SPIN_UP + n_train + GAP + n_test)[SPIN_UP:]
    sd_cm = float(height[:n_train].std(dtype=float))
    truth = (height / sd_cm).astype(np.float32)
    noisy = truth + NOISE * rng.standard_normal(truth.shape, np.float32)
    whole = Record(truth, np.where(seen_cells(rng.uniform(0, 1000), len(truth)), noisy, np.nan), sd_cm)
    return whole.part(slice(0, n_train)), whole.part(slice(n_train + GAP, None))


def sea_surface(seed: int, n_days: int) -> np.ndarray:
    """Heights (days, y, x) in cm from rest. Lengths are in 100 km, times in days."""
    import jax
    import jax.numpy as jnp

    from vardax.dynamics import QuasiGeostrophic2D

    length = SIZE * CELL_KM / 100
    ocean = QuasiGeostrophic2D(
        (SIZE, SIZE), length, beta=0.14, deformation_radius=0.5, drag=0.04, viscosity=1e-5, dt=1 / STEPS_PER_DAY
    )
    waves = np.hypot(np.fft.fftfreq(SIZE, CELL_KM / 100)[:, None], np.fft.rfftfreq(SIZE, CELL_KM / 100))
    ring = np.exp(-0.5 * ((waves - 1 / FORCED) / 0.06) ** 2)
    white = lambda key: jax.random.normal(key, (SIZE, SIZE))  # noqa: E731
    unit = float(jnp.std(jnp.fft.irfft2(ring * jnp.fft.rfft2(white(jax.random.key(0))))))

    def day(q, key):
        q = jax.lax.fori_loop(0, STEPS_PER_DAY, lambda _, q: ocean.step(q, ocean.dt), q)
        q = q + FORCING / unit * jnp.fft.irfft2(ring * jnp.fft.rfft2(white(key)))
        return q, TO_CM * ocean.streamfunction(q)

    keys = jax.random.split(jax.random.key(seed), n_days)
    return np.asarray(jax.jit(lambda q, keys: jax.lax.scan(day, q, keys)[1])(jnp.zeros((SIZE, SIZE)), keys))


def seen_cells(first_day: float, n_days: int) -> np.ndarray:
    """Which cells (days, y, x) the altimeters see; of the descending passes each meets row 0 0.37 turns further on."""
    seen, rows = np.zeros((n_days, SIZE, SIZE), bool), np.arange(SIZE)
    for per_day, slope, phase in ORBITS:
        pass_number = np.arange(np.ceil(first_day * per_day), (first_day + n_days) * per_day)
        day = np.minimum((pass_number / per_day - first_day).astype(int), n_days - 1)
        for direction, start in ((slope, 0.0), (-slope, 0.37)):
            east = (phase + start - pass_number / per_day) % 1.0 * EARTH_KM
            for k in np.flatnonzero(east < SIZE * CELL_KM):
                cells = (east[k] / CELL_KM + direction * rows).astype(int) % SIZE
                seen[day[k], rows, cells] = True
    return seen
