"""Datasets keep dimensions, units and names, in memory and through a file."""

import importlib
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from vardax.data import dataset as module
from vardax.data.dataset import Variable, load_dataset, save_dataset, to_dataset

TIME = Variable(("time",), [0.0, 0.5, 1.0], "days", "time of the analysis")
NAME = Variable(("scheme",), ["first", "second"])


def example():
    values = jnp.arange(6.0).reshape(2, 3).at[1, 2].set(jnp.nan)
    variables = {"analysis": Variable(("scheme", "time"), values, "K", "temperature")}
    return to_dataset(variables, {"time": TIME, "scheme": NAME}, {"title": "two runs"})


def test_names_units_and_attributes_are_there():
    dataset = example()
    assert dict(dataset.sizes) == {"time": 3, "scheme": 2}
    assert dataset.analysis.attrs == {"units": "K", "long_name": "temperature"}
    assert dataset.time.attrs == {"units": "days", "long_name": "time of the analysis"}
    assert dataset.scheme.attrs == {}
    assert float(dataset.analysis.sel(scheme="second", time=0.5)) == 4.0
    assert isinstance(dataset.analysis.values, np.ndarray)


def test_a_file_gives_back_what_was_written(tmp_path):
    dataset = example()
    path = save_dataset(dataset, tmp_path / "analysis.nc")
    again = load_dataset(path)
    assert again.identical(dataset)
    assert np.isnan(again.analysis.values[1, 2])


def test_the_dtype_in_the_file_can_be_chosen(tmp_path):
    again = load_dataset(save_dataset(example(), tmp_path / "analysis.nc", dtype="float32"))
    assert again.analysis.dtype == np.float32


def test_a_wrong_number_of_dimensions_is_refused():
    with pytest.raises(ValueError, match=r"variable 'a' has shape \(2, 3\), expected 1 axes"):
        to_dataset({"a": Variable(("time",), np.zeros((2, 3)))}, {})


def test_sizes_that_differ_are_refused():
    with pytest.raises(ValueError, match="variable 'a' has 2 entries along 'time', but 'time' has 3"):
        to_dataset({"a": Variable(("time",), np.zeros(2))}, {"time": TIME})


def test_without_xarray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(ImportError, match=r"need xarray: pip install 'vardax\[io\]'"):
        importlib.reload(module)


def test_without_a_file_engine_the_extra_is_named(monkeypatch, tmp_path):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "h5py" else found(name))
    with pytest.raises(ImportError, match=r"netCDF files need h5py: pip install 'vardax\[io\]'"):
        save_dataset(example(), tmp_path / "analysis.nc")
