"""What is done with finished runs: use, compare, verify, reproduce, list."""
