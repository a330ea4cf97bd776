#!/usr/bin/env bash
# Resolve the extras `dev` and `bench` afresh in a temporary environment and write constraints.txt from what came out.
# Run the tests before you commit the result.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly TORCH="torch==2.13.0"
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT

"${PYTHON:-python3}" -m venv "$fresh/venv"
"$fresh/venv/bin/python" -m pip install --quiet "$TORCH" uv
"$fresh/venv/bin/uv" pip install --python "$fresh/venv/bin/python" "$TORCH" '.[bench,dev]'
"$fresh/venv/bin/uv" pip check --python "$fresh/venv/bin/python"

# A local version such as +cpu names a build, and a file:// line names a folder of this machine.
{
    sed -n '/^#/p' constraints.txt
    "$fresh/venv/bin/uv" pip freeze --python "$fresh/venv/bin/python" |
        grep -v -E '^(-e |pip==|setuptools==|edgekiln)' | sed 's/+[a-z0-9.]*$//'
} >"$fresh/constraints.txt"
if grep -n -E '://| @ ' "$fresh/constraints.txt"; then
    echo "constraints: the lines above name a place; nothing was written" >&2
    exit 1
fi
# The oldest Python that is promised: Debian 12's. A package that needs a later 3.11 is noticed here.
"$fresh/venv/bin/uv" pip compile --quiet --python-version 3.11.2 --extra dev --extra bench --constraint "$fresh/constraints.txt" \
    --output-file "$fresh/resolved.txt" ${PIP_FIND_LINKS:+--find-links "$PIP_FIND_LINKS"} pyproject.toml
mv "$fresh/constraints.txt" constraints.txt
