"""What a worker is made of around the compiled loop, and the command line."""
