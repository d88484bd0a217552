"""Labelled arrays and their files: xarray datasets with dimensions, units and names, in netCDF.

A `Variable` says what an array is (dimensions, units, long name); `to_dataset` checks that the pieces fit and makes an
`xarray.Dataset`; `save_dataset` and `load_dataset` write and read netCDF-4. Missing values are NaN.
"""

import dataclasses
import importlib.util
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

try:
    import xarray as xr
except ImportError as error:
    raise ImportError("labelled arrays and netCDF files need xarray: pip install 'vardax[io]'") from error

__all__ = ["Variable", "load_dataset", "save_dataset", "to_dataset"]

ENGINE = "h5netcdf"


@dataclasses.dataclass(frozen=True)
class Variable:
    """An array with the names of its dimensions, its units ("1" for none) and what it is in words."""

    dims: tuple[str, ...]
    values: Any
    units: str = "1"
    long_name: str = ""

    def labelled(self) -> tuple[tuple[str, ...], np.ndarray, dict[str, str]]:
        """The (dims, values, attributes) that xarray takes; text has no units."""
        values = np.asarray(self.values)
        attributes = {} if values.dtype.kind in "USO" else {"units": self.units}
        return self.dims, values, attributes | ({"long_name": self.long_name} if self.long_name else {})


def to_dataset(
    variables: Mapping[str, Variable], coords: Mapping[str, Variable], attrs: Mapping[str, Any] | None = None
) -> xr.Dataset:
    """The dataset of `variables` on `coords`; `attrs` are those of the whole, such as title and source.

    >>> time = Variable(("time",), [0.0, 0.5], "days", "time of the analysis")
    >>> dataset = to_dataset({"analysis": Variable(("time",), [1.0, 2.0], "K")}, {"time": time})
    >>> dataset.analysis.attrs["units"], dict(dataset.sizes)
    ('K', {'time': 2})
    """
    sizes: dict[str, tuple[int, str]] = {}
    for name, variable in {**coords, **variables}.items():
        shape = np.shape(variable.values)
        if len(shape) != len(variable.dims):
            raise ValueError(
                f"variable {name!r} has shape {shape}, expected {len(variable.dims)} axes for its dimensions "
                f"{variable.dims}."
            )
        for dim, size in zip(variable.dims, shape, strict=True):
            known, owner = sizes.setdefault(dim, (size, name))
            if known != size:
                raise ValueError(f"variable {name!r} has {size} entries along {dim!r}, but {owner!r} has {known}.")
    return xr.Dataset(
        {name: variable.labelled() for name, variable in variables.items()},
        {name: variable.labelled() for name, variable in coords.items()},
        dict(attrs or {}),
    )


def save_dataset(dataset: xr.Dataset, path: str | pathlib.Path, *, dtype: str | None = None) -> pathlib.Path:
    """Write netCDF-4, compressed; `dtype` ("float32") is that of the data variables in the file."""
    _need_engine()
    encoding = {}
    for name, variable in dataset.data_vars.items():
        if variable.dtype.kind == "f":
            encoding[name] = {"zlib": True, "complevel": 1, "dtype": dtype or str(variable.dtype)}
    dataset.to_netcdf(path, engine=ENGINE, encoding=encoding)
    return pathlib.Path(path)


def load_dataset(path: str | pathlib.Path) -> xr.Dataset:
    """The whole dataset in memory, the file closed again."""
    _need_engine()
    return xr.load_dataset(path, engine=ENGINE)


def _need_engine() -> None:
    missing = [package for package in (ENGINE, "h5py") if importlib.util.find_spec(package) is None]
    if missing:
        raise ImportError(f"netCDF files need {' and '.join(missing)}: pip install 'vardax[io]'")
