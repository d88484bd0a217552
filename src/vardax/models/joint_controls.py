"""Several joint controls side by side: theta is the tuple, or the dictionary, of theirs.

Their priors are independent blocks; each acts in turn on the model, the operator and the predictions.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import lineax as lx
from jaxtyping import Array, PyTree

from vardax.covariances.block_diagonal import BlockDiagonalCovariance
from vardax.minimisers.transforms import spread
from vardax.models.joint_control import AbstractJointControl

__all__ = ["as_joint_control"]


class _Several(AbstractJointControl):
    """Joint controls side by side; theta is a tuple, or dictionary, of theirs, and each acts in turn."""

    parts: PyTree

    def __init__(self, parts: PyTree):
        self.parts = parts

    @property
    def mean(self) -> PyTree[Array]:
        return self._each(lambda part: part.mean)

    @property
    def cov_op(self) -> lx.AbstractLinearOperator:
        return BlockDiagonalCovariance(self._each(lambda part: part.cov_op))

    @property
    def control_transform(self) -> PyTree:
        return self._each(lambda part: spread(part.control_transform, part.cov_op.out_structure()))

    def model(self, forward: Any, theta: PyTree[Array]) -> Any:
        for part, own in self._with(theta):
            forward = part.model(forward, own)
        return forward

    def operator(self, obs_op: Any, theta: PyTree[Array]) -> Any:
        for part, own in self._with(theta):
            obs_op = part.operator(obs_op, own)
        return obs_op

    def prediction(self, predicted: Array, observed: Any, theta: PyTree[Array]) -> Array:
        for part, own in self._with(theta):
            predicted = part.prediction(predicted, observed, own)
        return predicted

    def _each(self, fn: Callable) -> PyTree:
        return jax.tree.map(fn, self.parts, is_leaf=_is_control)

    def _with(self, theta: PyTree[Array]) -> list[tuple[AbstractJointControl, PyTree[Array]]]:
        parts, structure = jax.tree.flatten(self.parts, is_leaf=_is_control)
        return list(zip(parts, structure.flatten_up_to(theta), strict=True))


def _is_control(node: Any) -> bool:
    return isinstance(node, AbstractJointControl)


def as_joint_control(joint: Any) -> AbstractJointControl | None:
    """None, one joint control, or a tuple, list or dictionary of them as one."""
    if joint is None or _is_control(joint):
        return joint
    several = list(joint.values()) if isinstance(joint, Mapping) else joint
    if isinstance(several, list | tuple) and several and all(map(_is_control, several)):
        return _Several(dict(joint) if isinstance(joint, Mapping) else tuple(joint))
    raise TypeError(
        f"`joint` is {joint!r}, expected JointControl(...), ForcingBias(...), ObservationBias(...), "
        "InstrumentBias(...), or a tuple or dictionary of these."
    )
