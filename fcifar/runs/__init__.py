"""A run: where it computes, what it writes, how it goes on after an interruption."""
