"""The phases of a study: which of its trials a run is.

The *pool* are the trials that everything is decided by: random settings, each with a seed of its
own. The *default* runs show what a user gets who tunes nothing. The *recommended* runs repeat the
best setting of the whole pool with fresh seeds: what the reader is told to use. They decide
nothing.
"""

POOL, DEFAULT, RECOMMENDED = "pool", "default", "recommended"
PHASES = (POOL, DEFAULT, RECOMMENDED)
