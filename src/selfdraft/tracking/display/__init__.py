"""These numbers as tables in the terminal and as pictures."""
