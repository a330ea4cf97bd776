"""The reference interpreter of Core ML's ML Programs (MIL), read from a saved ``.mlpackage``.

    package    the files: manifest, specification, weight blobs, every path and offset checked
    values     element types, and a protobuf value as a tensor, a string or a list
    constants  compressed constants: linear, palettes, blocks, sparse, joint
    program    a function as a list of steps, and how one is run: rounding, blocks, states
    table      op name to function; the other files hold the ops by theme

Numbers are float32 (and integers as they are); what the program declares as fp16 is rounded after every
op that computes. torch is imported at the top of these files: ``engines.coreml`` imports them late.
"""
