#!/usr/bin/env bash
# Prepare build/arm64: an arm64 Python with what a bundle needs to run, for qemu-aarch64-static. Idempotent.
#
# The bundle of a Raspberry Pi or a phone's arm64 library is then executed here, slowly and with the true arithmetic:
#   scripts/arm64.sh
#   scripts/arm64.sh verify out/bundles/raspberry-pi-5.edgekiln
# With arguments it runs edgekiln there with them. ONNX Runtime is pinned: 1.32's library crashes in QEMU 7.2.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly HOME64=$PWD/build/arm64
readonly STAMP=$HOME64/.ready
readonly WHEELS=(onnxruntime==1.23.2 numpy msgspec pillow)
readonly PURE=(rich markdown_it mdurl pygments platformdirs jinja2 typing_extensions.py)
readonly DEBIAN=(
    python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libc6 libstdc++6 libgcc-s1 zlib1g libexpat1
    libssl3 libffi8 libbz2-1.0 liblzma5 libsqlite3-0 libuuid1 libcrypt1
)

fail() { printf 'arm64: %s\n' "$@" >&2; exit 1; }

system() {
    command -v qemu-aarch64-static >/dev/null 2>&1 && return 0
    local root=()
    if [ "$(id -u)" -ne 0 ]; then root=(sudo -n); fi
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        qemu-user-static </dev/null >/dev/null 2>&1 ||
        fail "qemu-aarch64-static is missing. As root run: apt-get install qemu-user-static"
}

# Debian 12's packages, of another architecture and beside the system's own: dpkg never learns of them.
debian() {
    local apt=$HOME64/apt options
    mkdir -p "$apt/state/lists/partial" "$apt/cache/archives/partial" "$HOME64/debs" "$HOME64/root"
    : >"$apt/status"
    options=(-qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o "Dir::State=$apt/state"
        -o "Dir::Cache=$apt/cache" -o "Dir::State::status=$apt/status" -o APT::Sandbox::User=root)
    apt-get "${options[@]}" update </dev/null || fail "apt-get can't list arm64 packages here"
    (cd "$HOME64/debs" && apt-get "${options[@]}" download "${DEBIAN[@]}" </dev/null)
    local file
    for file in "$HOME64"/debs/*.deb; do dpkg -x "$file" "$HOME64/root"; done
}

packages() {
    local site=$HOME64/site wheel name packages
    mkdir -p "$HOME64/wheels" "$site"
    .venv/bin/python -m pip download --quiet --no-deps --python-version 3.11 --only-binary=:all: \
        --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
        --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 -d "$HOME64/wheels" "${WHEELS[@]}"
    for wheel in "$HOME64"/wheels/*.whl; do .venv/bin/python -m zipfile -e "$wheel" "$site"; done
    packages=$(.venv/bin/python -c 'import rich, pathlib; print(pathlib.Path(rich.__file__).parents[1])')
    for name in "${PURE[@]}"; do cp -r "$packages/$name" "$site/"; done
}

if [ ! -e "$STAMP" ]; then
    [ -x .venv/bin/python ] || fail "there is no .venv. Run: make setup"
    system
    debian
    packages
    touch "$STAMP"
fi
[ $# -eq 0 ] && exit 0
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$HOME64/site:$PWD/src exec qemu-aarch64-static -cpu cortex-a76 \
    -L "$HOME64/root" "$HOME64/root/usr/bin/python3.11" -m edgekiln "$@"
