"""How matrices are stored and multiplied on a CPU: packed, in few bits, fused, in our C++."""
