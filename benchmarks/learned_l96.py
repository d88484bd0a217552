"""4DVarNet on Lorenz-96 beside interpolation, OI and converged weak-constraint 4D-Var, on the same windows.

The setting is the published one (`lorenz_windows.py`): windows of 200 steps, a random half of the 40 cells observed at
every fourth step with noise of variance 2. Published for the learned solver with the model as prior and a ConvLSTM, 20
iterations: a mean squared error of 0.827 over all entries, 0.621 at the observed and 0.856 at the missing ones. The
methods are described in `learned_lorenz.py`; `--quick` leaves out weak 4D-Var, which takes long to compile.
"""

from learned_lorenz import Setting, main
from lorenz_windows import lorenz96


def model():
    from vardax.dynamics import Lorenz96

    return Lorenz96(40, dt=0.05)


def prior():
    from vardax.priors import L96Prior

    return L96Prior()


if __name__ == "__main__":
    setting = Setting(
        program=__file__,
        windows=lorenz96,
        model=model,
        prior=prior,
        padding="periodic",
        stages=(1.0, 0.1, 0.01),
        n_outer=20,
        hidden=128,
        batch=16,
        published={"all": 0.827, "observed": 0.621, "missing": 0.856},
    )
    main(setting, __doc__)
