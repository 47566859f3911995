"""Running a study's trials: the queue, its storage, workers."""
