"""The parts of the benchmark of deadlines: the loads, the rungs, the contenders, the frames, the figures."""
