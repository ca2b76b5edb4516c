"""What a training of such weights needs of the target: its outputs, trainable copies, shares for every process."""
