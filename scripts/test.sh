#!/usr/bin/env bash
# Run the tests, the folders of tests/ in a process each: the native libraries of eight vendors in one process get
# in each other's way, and what crashes one part must not hide what the others say.
#
# Arguments go to pytest. Exits with 1 where any part failed, after all of them ran.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

parts=(tests/test_*.py)
run() {
    local name=$1
    shift
    printf '\n== %s\n' "$name"
    .venv/bin/python -m pytest --durations=12 --durations-min=5 "$@"
    local code=$?
    if [ "$code" -ge 128 ]; then printf '== %s: ended by signal %d\n' "$name" $((code - 128)); fi
    if [ "$code" -eq 130 ]; then exit 130; fi
    results+=("$(printf '%-8s %s' "$([ "$code" -eq 0 ] && echo passed || echo FAILED)" "$name")")
    [ "$code" -eq 0 ] || failed=1
}

results=() failed=0
run "tests/*.py" "${parts[@]}" "$@"
for folder in tests/*/; do
    if [ -n "$(find "$folder" -name 'test_*.py' -print -quit)" ]; then run "$folder" "$folder" "$@"; fi
done
printf '\n'
printf '%s\n' "${results[@]}"
exit "$failed"
