"""F2: the decoding loop, when it stops, and what it records."""
