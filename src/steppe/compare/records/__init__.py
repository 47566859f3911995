"""A study's results: the records of its trials, their JSON, their summary, and the verdicts."""
