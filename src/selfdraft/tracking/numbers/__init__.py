"""From the lines of a run to its numbers, under the names that the field uses."""
