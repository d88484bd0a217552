"""vardax: data assimilation on JAX.

Where things are, from the data to the report:

- `types`, `protocols`: what every stage receives and returns; the contracts between the parts
- `covariances`: B, R and Q with their square roots
- `obs_operators`: from a state to what is observed
- `dynamics`: how the state moves; demonstration systems
- `minimisers`: the control-space problem and what solves it
- `primitives`: costs, BLUE and the control-variable transform as pure functions
- `models`: the methods, one file each
- `posterior`: how sure an analysis is
- `cycle`: analysis -> forecast -> next background
- `validation`: checks of your own models, operators and covariances
- `diagnostics`, `metrics`: what the numbers say
- `data`, `plotting`: xarray and figures, imported on demand
- `experiments`, `cli`: named twin problems, and the `vardax` command

Start with `OptimalInterpolation` (linear operator, one time), `ThreeDVar` (any operator) or `StrongFourDVar` (a window).
"""
