"""Data in and out: labelled datasets and netCDF files (extra `io`)."""

from vardax.data.dataset import Variable, load_dataset, save_dataset, to_dataset

__all__ = ["Variable", "load_dataset", "save_dataset", "to_dataset"]
