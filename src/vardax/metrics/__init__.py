"""Scores of analyses against a truth: root mean square errors, spread, and time means with confidence intervals."""

from vardax.metrics.scores import TimeMean, autocorrelation_time, rmse, spread, time_mean

__all__ = ["TimeMean", "autocorrelation_time", "rmse", "spread", "time_mean"]
