"""Running a study's trials: the queue of trials, their storage, and workers."""
