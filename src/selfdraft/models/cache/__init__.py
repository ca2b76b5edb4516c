"""Keys and values of the texts so far, the tokens of one forward, and which of them may attend to which."""
