"""What passes between the user and the program: the command line, its help, messages, signals."""
