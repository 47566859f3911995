"""What every engine is given: methods, plans, scalars, norms, number formats and shards."""
