"""The two phases of a study: tuning trials, which never look at the test set, and test runs."""

TUNE, TEST = "tune", "test"
PHASES = (TUNE, TEST)
