"""What the benchmarks share: running a process and measuring it, scenes to measure on, tables."""
