"""The typed configuration: every group of options, checks, and the index of all of them."""
