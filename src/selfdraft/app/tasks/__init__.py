"""One file for each task, and those that only one task needs."""
