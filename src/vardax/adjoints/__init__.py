"""How gradients are made: the differentiation strategies that go into the adjoint slots of the methods.

`minimiser_adjoint` says how the analysis is differentiated, `forward_adjoint` what the differentiated model run keeps.
Both take adjoints of optimistix, diffrax and vardax, and specifications of other packages, which the two mapping
functions recognise by name.

| strategy | of a solver | of a model run | memory |
|---|---|---|---|
| `ImplicitAdjoint()` | at the converged solution | - | of one step |
| `KStepAdjoint(k)`, `OneStepAdjoint()` | its last k updates | - | of k updates |
| `RecursiveCheckpointAdjoint(checkpoints)` | all steps, most of them run again | the same | of the checkpoints |
| `DirectAdjoint()` | all steps, all of them kept | the same | of all steps |

| module | holds |
|---|---|
| `k_step`, `one_step` | the truncated derivatives |
| `tail` | which steps of a solver made its last updates |
| `direct` | the unrolled derivative, forward and reverse |
| `mapping` | `to_optimistix_adjoint`, `to_diffrax_adjoint` |
"""

from optimistix import AbstractAdjoint, ImplicitAdjoint, RecursiveCheckpointAdjoint

from vardax.adjoints.direct import DirectAdjoint
from vardax.adjoints.k_step import KStepAdjoint
from vardax.adjoints.mapping import to_diffrax_adjoint, to_optimistix_adjoint
from vardax.adjoints.one_step import OneStepAdjoint

__all__ = [
    "AbstractAdjoint",
    "DirectAdjoint",
    "ImplicitAdjoint",
    "KStepAdjoint",
    "OneStepAdjoint",
    "RecursiveCheckpointAdjoint",
    "to_diffrax_adjoint",
    "to_optimistix_adjoint",
]
