"""Several videos through one engine: sources, queues that drop the oldest, fair turns, concurrent calls."""
