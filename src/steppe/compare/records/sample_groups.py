"""Validation samples left out group by group, for the jackknife of what they choose."""

import numpy as np

from steppe.compare.records.best_of_k import Array

# Groups that validation samples are left out in. One sample at a time hardly changes an order, so
# that the jackknife of single samples is wrong for choices; groups larger than the root of the
# number of samples are right (Shao and Wu, Annals of Statistics 17, 1989).
_GROUPS = 20


def leave_groups_out(samples: Array, stretches: int | None = None) -> Array:
    """Return the means over samples without each group of samples, of shape (groups, trials).

    Parameters
    ----------
    samples : array of shape (trials, samples)
        A number for each validation sample.
    stretches : int, optional
        Of so many nearly equal stretches of samples each is left out as a whole. Default: each
        sample is one.
    """
    count = samples.shape[1]
    pieces = np.array_split(np.arange(count), stretches or count)
    stretch = np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])
    groups = stretch % min(_GROUPS, len(pieces))
    # Sums of whole numbers are exact, so that equal shares of right answers stay equal.
    sums = samples.sum(axis=1)
    found = [
        (sums - samples[:, groups == group].sum(axis=1)) / (groups != group).sum()
        for group in range(groups.max() + 1)
    ]
    return np.array(found)
