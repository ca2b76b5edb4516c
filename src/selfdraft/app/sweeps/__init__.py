"""Sweeps: which jobs run, their processes, and the table of their results."""
