"""What forwards cost on this machine: seconds, memory and energy."""
