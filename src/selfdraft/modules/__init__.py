"""F3: Lightning modules."""
