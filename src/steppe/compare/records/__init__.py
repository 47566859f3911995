"""A study's results: the records of its trials, their JSON, and their summary over seeds."""
