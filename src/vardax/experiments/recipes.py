"""How an exported method becomes a row of a table, from the slots of its constructor alone.

A method is a class in `vardax.models.__all__` with `as_analysis_step`. If every slot without a default is among those
that the experiment can fill (`obs_op`, `prior_mean`, `prior_cov_op`, `obs_cov_op`, `forward`), the method joins the
table with no further edit: one with a `forward` slot over windows, the others at one time. A method that needs more
has its row in the experiment's own file; until then the run says what it lacks.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from vardax import models
from vardax.experiments.twin import Row, Twin

__all__ = ["exported_methods", "lacking_slots", "required_slots", "standard_row"]

TRAINED = ("prior", "grad_mod")
"""The slots of a learned solver that hold networks."""


def exported_methods() -> dict[str, type]:
    """The methods of `vardax.models`, by name, in the order in which it lists them."""
    found = {name: getattr(models, name) for name in models.__all__}
    return {
        name: item
        for name, item in found.items()
        if isinstance(item, type) and hasattr(item, "as_analysis_step") and not inspect.isabstract(item)
    }


def required_slots(method: type) -> list[str]:
    """The constructor's arguments without a default, and the networks of a learned solver, which have to be trained."""
    parameters = inspect.signature(method).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    networks = TRAINED if any(p.name == "grad_mod" for p in named) else ()
    return [p.name for p in named if p.default is p.empty or p.name in networks]


def lacking_slots(method: type, slots: Mapping[str, Any]) -> list[str]:
    """What the constructor asks for and the experiment cannot give."""
    return [name for name in required_slots(method) if name not in slots]


def standard_row(method: type, slots: Mapping[str, Any], twin: Twin) -> Row:
    """The row of a method whose slots can all be filled."""
    required = required_slots(method)
    model = method(**{name: slots[name] for name in required})
    if "forward" in required:
        note = "window of one interval, its end observed; background: the last analysis"
        return Row(method.__name__, note, twin.forward, model, takes_window=True)
    return Row(method.__name__, "background: the forecast", twin.forward, model)
