# Shared by setup.sh and lock.sh (sourced, from the project root): the virtual environment and the installer in it.

venv="${MI_EPO_VENV:-.venv}"

die() {
    printf 'set-up: %s\n' "$*" >&2
    exit 1
}

need_linux_x86_64() {
    [[ $(uname -s) == Linux && $(uname -m) == x86_64 ]] ||
        die "needs Linux on x86_64, this is $(uname -s) on $(uname -m): the engine wheels exist for no other"
}

find_python() { # prints a Python 3.11; PYTHON=/path/to/python3.11 chooses one
    local candidate
    for candidate in ${PYTHON:-python3.11 python3 python}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "needs Python 3.11, found none as ${PYTHON:-python3.11, python3 or python}; install it or name it: PYTHON=/path/to/python3.11"
}

make_venv() {
    # The scripts of an environment name its folder: after a move it is made anew.
    if [[ -x $venv/bin/python ]] && grep -qsF "$(realpath "$venv")" "$venv/bin/activate"; then
        return
    fi
    local python
    python=$(find_python)
    "$python" -m venv --clear "$venv" ||
        die "'$python -m venv $venv' failed (Debian and Ubuntu keep it in a package of its own: python3.11-venv)"
}

bootstrap_uv() {
    local pinned
    pinned=$(sed -n 's/^uv==//p' deploy/locks/uv.in)
    [[ $("$venv/bin/uv" --version 2>/dev/null) == "uv $pinned"* ]] && return
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
        --requirement deploy/locks/uv.txt || die "pip could not install uv $pinned from deploy/locks/uv.txt (its answer is above)"
}

# uv reads none of pip's settings: index and certificate are passed on to it. Wheel folders are left in pip_find_links, for the CPU
# engine only: the CPU build of torch in one of them would satisfy the CUDA engine's pin too.
follow_pip_configuration() {
    local settings index links cert
    settings=$("$venv/bin/python" -m pip config list 2>/dev/null || true)
    setting() { # the environment, then files; the list is printed as Python literals
        { grep '^:env:' <<<"$settings" || true; grep -v '^:env:' <<<"$settings" || true; } |
            sed -n "s/^[^.]*\.$1='\(.*\)'$/\1/p" | head -n 1
    }
    index=$(setting index-url) links=$(setting find-links) cert=$(setting cert)
    pip_find_links=$(sed 's/\\n/ /g; s/^ *//; s/ *$//; s/  */,/g' <<<"$links")
    [[ -z $index ]] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}"
    [[ -z $cert ]] || export SSL_CERT_FILE="${SSL_CERT_FILE:-$cert}"
}
