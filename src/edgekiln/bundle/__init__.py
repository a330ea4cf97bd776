"""What ships: one ``.edgekiln`` zip per device, the same bytes for the same content.

manifest.json        schema, hashes of every other file, signature, artifact, choice, provenance
model/               the artifact's files
alternates/NAME/     the files of an artifact that takes over where the chosen one fails or is too slow
labels.txt           one class name a line, where there are labels
golden/              recorded inputs and outputs
app/                 code for apps on the device, and its self-test
evidence.json        every figure about this artifact, and how it was obtained
signatures/          reserved: signatures over manifest.json; nothing is signed yet
"""

from __future__ import annotations

SCHEMA = 2
READS = (1, 2)
"""Schema 2 added alternates, and the evidence to the manifest."""

SUFFIX = ".edgekiln"
MANIFEST = "manifest.json"
EVIDENCE = "evidence.json"
LABELS = "labels.txt"
MODEL_FOLDER = "model"
ALTERNATES_FOLDER = "alternates"
GOLDEN_FOLDER = "golden"
APP_FOLDER = "app"
SIGNATURES = "signatures/"
