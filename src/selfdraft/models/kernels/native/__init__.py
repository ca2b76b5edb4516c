"""The native engine: layers of the Llama kind on a CPU, in C++. A token gets the same bits in a block of any size."""
