"""The contracts as checks that you can run on your own objects.

Each test takes an object of yours, makes a table of measurements and limits, and says what to look at:

| test | takes | asks |
|---|---|---|
| `adjoint_test` | anything linear or linearisable | is the adjoint the transpose of the tangent? |
| `taylor_test` | anything differentiable | is the tangent the derivative? |
| `gradient_test` | a cost, a control-space problem, a method | is the gradient right, does the cost respect the mask? |
| `covariance_test` | B, R or Q | symmetric, positive, with a square root and an inverse of its own? |
| `observation_operator_test` | H | all of this for an observation operator, with its masks |
| `forward_model_test` | a model | all of this for a step, and a stable run |
| `assert_posterior_agreement` | a posterior and an oracle's | same mean, spread and covariance? |
| `assert_adjoint_calibrated` | a gradient and an oracle's | same direction and length? |
| `simulation_based_calibration` | a method, or a function that draws | is the posterior right on average? |

All return a report: print it, test it (`assert report`), or let it raise (`report.raise_if_failed()`); the two that
begin with `assert` raise by themselves. Limits of the first six depend on the float type and are listed in
`vardax.validation.tolerances`; `tolerances={"adjoint": 1e-10}` sets one of them. Same key, same numbers.
"""

from vardax.validation.adjoint import adjoint_test
from vardax.validation.calibrated_adjoint import assert_adjoint_calibrated
from vardax.validation.calibration import CalibrationReport
from vardax.validation.covariance import covariance_test
from vardax.validation.forward_model import forward_model_test
from vardax.validation.gradient import gradient_test
from vardax.validation.observation_operator import observation_operator_test
from vardax.validation.posterior_agreement import assert_posterior_agreement
from vardax.validation.report import Check, ValidationError, ValidationReport
from vardax.validation.simulation_based import simulation_based_calibration
from vardax.validation.taylor import taylor_test

__all__ = [
    "CalibrationReport",
    "Check",
    "ValidationError",
    "ValidationReport",
    "adjoint_test",
    "assert_adjoint_calibrated",
    "assert_posterior_agreement",
    "covariance_test",
    "forward_model_test",
    "gradient_test",
    "observation_operator_test",
    "simulation_based_calibration",
    "taylor_test",
]
