"""Layers of the Llama kind on a CPU, in C++: few bits for the same values, and the same bits in any block."""
