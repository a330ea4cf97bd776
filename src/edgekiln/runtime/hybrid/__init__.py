"""Offload: a frame is answered by a model server, by this machine, or by whichever is first in time."""
