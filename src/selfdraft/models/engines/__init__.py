"""How a path's layers are run: one by one, all at once by our C++, or compiled."""
