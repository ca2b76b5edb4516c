"""What all tasks share: the life of a run, its processes, and the objects that its configuration names."""
