"""How models of different families are built: their parts, and what has to be done differently for some of them."""
