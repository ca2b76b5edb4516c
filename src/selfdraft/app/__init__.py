"""F4: the typed configuration, the objects built from it, and the tasks."""
