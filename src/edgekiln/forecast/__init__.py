"""What a device that nobody holds would take: latency, memory, energy, each with an interval and its
evidence."""
