"""4DVarNet on Lorenz-63 beside interpolation, OI and converged weak-constraint 4D-Var, on the same windows.

The setting is the published one (`lorenz_windows.py`): windows of 200 steps of 0.01, all three components observed at
every eighth step with noise of variance 2; the first and the last ten steps are not scored. The methods are described
in `learned_lorenz.py`; `--quick` leaves out weak 4D-Var, which takes long to compile.
"""

from learned_lorenz import Setting, Training, main
from lorenz_windows import lorenz63


def model():
    from vardax.dynamics import Lorenz63

    return Lorenz63(dt=0.01)


def prior():
    from vardax.priors import L63Prior

    return L63Prior()


def modulator(seed: int):
    """Convolutions of time, the three components together."""
    import equinox as eqx
    import jax

    from vardax.grad_mod import ConvLSTMGradMod1D, StateAndGradient

    class AlongTime(eqx.Module):
        net: ConvLSTMGradMod1D

        def init_carry(self, state):
            return self.net.init_carry(state.T)

        def __call__(self, grad, state, carry):
            update, carry = self.net(grad.T, state.T, carry)
            return update.T, carry

    standardised = StateAndGradient(mean=8.0, scale=12.0)
    net = ConvLSTMGradMod1D(3, 64, 5, inputs=standardised, downsampling=2, key=jax.random.key(seed))
    return AlongTime(net)


if __name__ == "__main__":
    setting = Setting(
        program=__file__,
        windows=lorenz63,
        circle=False,
        model=model,
        prior=prior,
        modulator=modulator,
        training=Training(phases=((5, 400), (10, 300), (20, 700)), batch=32, piece=104, rate=3e-3, prior_weight=100.0),
        stages=(0.1, 0.01, 0.001),
        n_outer=20,
        published=None,
    )
    main(setting, __doc__)
