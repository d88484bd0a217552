"""How gradients are made: the differentiation strategies that go into the adjoint slots of the methods.

`minimiser_adjoint` says how the analysis is differentiated: `ImplicitAdjoint()` at the optimum (the default), or
`RecursiveCheckpointAdjoint()` through the iterations. `forward_adjoint` says what the differentiated model run keeps:
`RecursiveCheckpointAdjoint(checkpoints)`, or any object of class `DirectAdjoint` or `ForwardMode`. These are
optimistix's own classes.
"""

from optimistix import AbstractAdjoint, ImplicitAdjoint, RecursiveCheckpointAdjoint

__all__ = ["AbstractAdjoint", "ImplicitAdjoint", "RecursiveCheckpointAdjoint"]
