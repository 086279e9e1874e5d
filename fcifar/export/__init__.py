"""A network's values in other people's formats, and theirs in ours; a run's metrics elsewhere."""
