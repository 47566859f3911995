"""The standard error of a mean over samples that all meet the same few draws of noise."""

import math

from torch import Tensor


def error_over_draws(table: Tensor) -> float:
    """Return the standard error of the mean of a table, over samples and draws.

    A draw moves all samples, and a sample has its own level in all draws: with the mean squares of
    samples, draws and what is left, it is ``√((MS_s + MS_d − MS_r)/(D·S))``, and of one draw s/√S.
    See Searle, Casella and McCulloch, *Variance Components* (1992), chapter 4.

    Parameters
    ----------
    table : Tensor
        (draws, samples).

    Returns
    -------
    float
        NaN of one sample, and of numbers that are not finite.

    Examples
    --------
    >>> import torch
    >>> error_over_draws(torch.tensor([[1.0, 3.0]]))
    1.0
    >>> error_over_draws(torch.tensor([[0.0, 0.0], [2.0, 2.0]]))
    1.0
    """
    draws, samples = table.shape
    table = table.double()
    if samples < 2 or not table.isfinite().all():
        return math.nan
    of_samples, of_draws = table.mean(dim=0), table.mean(dim=1)
    by_sample = float(of_samples.var() / samples)
    if draws == 1:
        return math.sqrt(by_sample)
    by_draw = float(of_draws.var() / draws)
    left = table - of_samples - of_draws[:, None] + table.mean()
    by_both = float(left.square().sum()) / ((draws - 1) * (samples - 1) * draws * samples)
    return math.sqrt(max(by_sample + by_draw - by_both, by_sample, by_draw))
