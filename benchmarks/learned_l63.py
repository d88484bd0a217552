"""4DVarNet on Lorenz-63 beside interpolation, OI and converged weak-constraint 4D-Var, on the same windows.

The setting is the published one (`lorenz_windows.py`): windows of 200 steps of 0.01, all three components observed at
every eighth step with noise of variance 2; the first and the last ten steps are not scored. The methods are described
in `learned_lorenz.py`; `--quick` leaves out weak 4D-Var, which takes long to compile.
"""

from learned_lorenz import Setting, main
from lorenz_windows import lorenz63


def model():
    from vardax.dynamics import Lorenz63

    return Lorenz63(dt=0.01)


def prior():
    from vardax.priors import L63Prior

    return L63Prior()


if __name__ == "__main__":
    setting = Setting(
        program=__file__,
        windows=lorenz63,
        model=model,
        prior=prior,
        padding="zeros",
        stages=(0.1, 0.01, 0.001),
        n_outer=20,
        hidden=64,
        batch=64,
        published=None,
    )
    main(setting, __doc__)
