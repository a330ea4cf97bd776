#!/usr/bin/env bash
# Install what the benchmark of quantisers needs beyond `make setup`, run it, print its tables.
# What is given here goes to the benchmark: scripts/bench_quantisation.sh --models efficientnet-lite0
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly TORCH="torch==2.13.0" OLIVE="build/olive-venv"
# The runtime that everyone else has; Olive imports requests and does not name it.
readonly OLIVE_PACKAGES=(olive-ai==0.13.0 onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6 requests)
readonly STAMPS="tuxpaint-stamps-default" STAMPS_FOLDER="/usr/share/tuxpaint/stamps"

say() { printf 'bench-quantisation: %s\n' "$*"; }

# The photographs are GPL-2: installed by the system's own tool, read where they lie, never copied into the
# repository.
install_stamps() {
    local root=()
    if [ -d "$STAMPS_FOLDER" ]; then return 0; fi
    if ! command -v apt-get >/dev/null 2>&1; then
        say "MISSING: $STAMPS, a package of Debian and Ubuntu; there is no apt-get here to install it" >&2
        return 1
    fi
    if [ "$(id -u)" -ne 0 ]; then
        if ! sudo -n true >/dev/null 2>&1; then
            say "MISSING: $STAMPS. As root run: apt-get install $STAMPS" >&2
            return 1
        fi
        root=(sudo -n)
    fi
    say "apt-get install $STAMPS (161 MB)"
    "${root[@]}" apt-get update -qq </dev/null || true
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "$STAMPS" </dev/null >/dev/null || {
        say "MISSING: $STAMPS; apt-get said above why" >&2
        return 1
    }
}

install_packages() {
    # Named beside the rest, or the resolver would fetch another build of torch.
    say "installing edgekiln[bench] with uv"
    .venv/bin/uv pip install --quiet --python .venv/bin/python -c constraints.txt "$TORCH" -e '.[bench]'
}

# Olive can't share an environment with the rest. Where it can't be had, its rows say so.
make_olive() {
    if [ -f "$OLIVE/whole" ]; then return 0; fi
    say "making an environment for Olive"
    .venv/bin/python -m venv --clear "$OLIVE" &&
        "$OLIVE/bin/python" -m pip install --quiet -c constraints.txt "$TORCH" &&
        .venv/bin/uv pip install --quiet --python "$OLIVE/bin/python" "$TORCH" "${OLIVE_PACKAGES[@]}" &&
        touch "$OLIVE/whole" && return 0
    say "MISSING: Olive; the benchmark goes on without it" >&2
    rm -rf "$OLIVE"
}

install_stamps
install_packages
make_olive
exec .venv/bin/python benchmarks/quantisation/run.py --memory-test "$@"
