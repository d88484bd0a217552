"""4DVarNet on Lorenz-96 beside interpolation, OI and converged weak-constraint 4D-Var, on the same windows.

The setting is the published one (`lorenz_windows.py`): windows of 200 steps, a random half of the 40 cells observed at
every fourth step with noise of variance 2. Published for the learned solver with the model as prior and a ConvLSTM, 20
iterations: a mean squared error of 0.827 over all entries, 0.621 at the observed and 0.856 at the missing ones. The
methods are described in `learned_lorenz.py`; `--quick` leaves out weak 4D-Var, which takes long to compile.
"""

from learned_lorenz import Setting, Training, main
from lorenz_windows import lorenz96


def model():
    from vardax.dynamics import Lorenz96

    return Lorenz96(40, dt=0.05)


def prior():
    from vardax.priors import L96Prior

    return L96Prior()


def modulator(seed: int):
    """Convolutions of time and space: windows begin and end, the cells lie on a circle."""
    import jax

    from vardax.grad_mod import ConvLSTMGradMod2D, StateAndGradient

    standardised = StateAndGradient(mean=2.3, scale=3.6)
    return ConvLSTMGradMod2D(1, 16, inputs=standardised, padding=("zeros", "periodic"), key=jax.random.key(seed))


if __name__ == "__main__":
    setting = Setting(
        program=__file__,
        windows=lorenz96,
        circle=True,
        model=model,
        prior=prior,
        modulator=modulator,
        training=Training(phases=((5, 300), (10, 150), (20, 300)), batch=8, piece=64, rate=3e-3),
        stages=(1.0, 0.1, 0.03),
        n_outer=40,
        published={"all": 0.827, "observed": 0.621, "missing": 0.856},
    )
    main(setting, __doc__)
