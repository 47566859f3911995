"""The commands that run, watch and report studies."""
