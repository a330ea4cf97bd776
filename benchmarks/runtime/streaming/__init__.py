"""The benchmark of streams: eight videos through one engine against the engine's best batch rate."""
