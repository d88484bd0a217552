"""The control-space problem and what solves it.

`ControlSpaceProblem` (one sample) and `BatchedProblem` are what every method poses; `minimise` and `iterate` run any
optimistix solver on them; the transforms `Identity`, `Exp`, `Softplus` keep states positive.
"""

from vardax.minimisers.minimise import iterate, minimise
from vardax.minimisers.problem import BatchedProblem, ControlSpaceProblem
from vardax.minimisers.transforms import Exp, Identity, Softplus

__all__ = ["BatchedProblem", "ControlSpaceProblem", "Exp", "Identity", "Softplus", "iterate", "minimise"]
