"""F4: typed configuration, from configuration to objects, and the tasks."""
