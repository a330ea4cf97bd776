"""ARR-COC: look closely only where the question needs it.

A picture becomes a texture array (``texture``), scorers turn that into relevance maps, and an allocation
spends a token budget over a quadtree of regions. Each part is its own module; nothing is imported here,
because a device that only scores carries neither torch nor transformers.
"""
