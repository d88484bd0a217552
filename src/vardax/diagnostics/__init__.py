"""Checks of an assimilation against its own assumptions, from what it returns and without a truth."""

from vardax.diagnostics.consistency import chi_square, chi_square_sampling_error

__all__ = ["chi_square", "chi_square_sampling_error"]
