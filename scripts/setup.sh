#!/usr/bin/env bash
# Make .venv and node_modules with everything that the demo, the tests and the documentation need. Run it as
# often as you like: when nothing has changed since the last time it returns at once.
#
# PYTHON=...  the interpreter to use (3.11 or newer); by default the first that fits on the PATH.
# The configuration of pip (PIP_FIND_LINKS, PIP_INDEX_URL, pip.conf), uv (UV_*) and npm (npm_config_*, the
# user's .npmrc) is left as it is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly TORCH="torch==2.13.0"
readonly STAMP=".venv/.edgekiln-setup"
# The documentation's and the report's tests open pages in a real browser.
readonly BROWSERS=(chromium chromium-browser google-chrome)
# A command, the Debian package that brings it, and what is not tested without it.
readonly PROGRAMS=(
    "node nodejs the web engine's tests"
    "npm npm the web engine and the Kotlin compiler"
    "java default-jdk-headless the app code in Kotlin"
    "g++ g++ the app code in C++"
    "cmake cmake the app code in C++"
    "ssh openssh-client measuring on a device over SSH"
)

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$@" >&2; exit 1; }

fingerprint() {
    { sha256sum pyproject.toml constraints.txt package-lock.json scripts/setup.sh; pwd; } | sha256sum | cut -d' ' -f1
}

any_command() {
    local name
    for name in "$@"; do
        if command -v "$name" >/dev/null 2>&1; then return 0; fi
    done
    return 1
}

# Install Debian packages, or return 1 where that is not possible here.
apt_updated=no
apt_install() {
    local root=()
    command -v apt-get >/dev/null 2>&1 || return 1
    if [ "$(id -u)" -ne 0 ]; then
        sudo -n true >/dev/null 2>&1 || return 1
        root=(sudo -n)
    fi
    if [ "$apt_updated" = no ]; then
        say "apt-get update"
        "${root[@]}" apt-get update -qq </dev/null || return 1
        apt_updated=yes
    fi
    say "apt-get install $*"
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "$@" </dev/null >/dev/null
}

find_python() {
    local name
    for name in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            command -v "$name"
            return 0
        fi
    done
    return 1
}

make_venv() {
    local python version
    # The scripts in an environment name its folder, so one that was moved is made anew.
    if grep -qF -- "$PWD/.venv" .venv/pyvenv.cfg 2>/dev/null &&
        .venv/bin/python -m pip --version >/dev/null 2>&1; then
        return 0
    fi
    python=$(find_python) || fail "no Python 3.11 or newer was found." \
        "On Debian 12 or newer run: apt-get install python3 python3-venv (or name one with PYTHON=...)"
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    if ! "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
        apt_install "python$version-venv" || apt_install python3-venv || fail \
            "$python can't make virtual environments." "Run: apt-get install python$version-venv"
    fi
    say "creating .venv with Python $version"
    "$python" -m venv --clear .venv
}

install_packages() {
    local quiet=(--quiet --quiet)
    if [ -t 1 ]; then quiet=(); fi
    # torch comes first and through pip, which finds a CPU build where pip is configured for one; uv then
    # sees the version satisfied and leaves it alone.
    say "installing $TORCH and uv"
    .venv/bin/python -m pip install "${quiet[@]}" -c constraints.txt "$TORCH" uv
    say "installing edgekiln[dev] with uv"
    .venv/bin/uv pip install --quiet --python .venv/bin/python -c constraints.txt "$TORCH" -e '.[dev]'
    .venv/bin/uv pip check --quiet --python .venv/bin/python
}

install_browser() {
    if any_command "${BROWSERS[@]}" || { apt_install chromium && any_command "${BROWSERS[@]}"; }; then
        return 0
    fi
    say "MISSING: chromium, which the tests of the report open its page in." \
        "As root run: apt-get install chromium" >&2
}

install_programs() {
    local row program package purpose
    for row in "${PROGRAMS[@]}"; do
        read -r program package purpose <<<"$row"
        any_command "$program" || { apt_install "$package" && any_command "$program"; } ||
            say "MISSING: $program, for $purpose. As root run: apt-get install $package" >&2
    done
}

# Packages from npm run no scripts of their own (.npmrc says so too).
install_npm_packages() {
    if ! any_command npm; then
        say "MISSING: the packages of package.json, because npm is missing" >&2
        return 0
    fi
    say "installing the packages of package-lock.json with npm"
    npm ci --ignore-scripts --no-audit --no-fund --loglevel=error </dev/null >/dev/null ||
        { say "MISSING: the packages of package.json; npm said above why" >&2; return 1; }
}

main() {
    local wanted complete=yes
    wanted=$(fingerprint)
    if [ -x .venv/bin/python ] && [ "$(cat "$STAMP" 2>/dev/null)" = "$wanted" ]; then
        return 0
    fi
    make_venv
    install_packages
    install_browser
    install_programs
    install_npm_packages || complete=no  # a registry that did not answer is asked again the next time
    if [ "$complete" = yes ]; then printf '%s\n' "$wanted" >"$STAMP"; fi
    say "done: .venv is ready"
}

main
