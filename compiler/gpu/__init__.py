"""What compiles for a GPU."""
