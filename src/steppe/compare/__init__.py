"""Train optimizers against each other on real data, and say honestly what came out."""
