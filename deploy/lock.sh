#!/usr/bin/env bash
# Resolves pyproject.toml into deploy/locks/*.txt, every file of every package by hash. Pins that still fit stay;
# `UPGRADE=1 bash deploy/lock.sh` takes the newest versions that pyproject.toml admits. Needs the package index.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source deploy/uv.sh

need_linux_x86_64
make_venv
bootstrap_uv
follow_pip_configuration

compile() { # compile OUTPUT INPUT [OPTION ...]
    local output=$1
    shift
    echo "locking $output"
    "$venv/bin/uv" pip compile --quiet --generate-hashes --custom-compile-command "make lock" \
        --python-version 3.11 --python-platform x86_64-manylinux_2_28 ${UPGRADE:+--upgrade} \
        --output-file "deploy/locks/$output" "$@" >/dev/null
}

compile uv.txt deploy/locks/uv.in
compile build.txt deploy/locks/build.in
compile gpu.txt pyproject.toml --extra gpu --extra dev --constraints deploy/locks/gpu-constraints.txt

cpu=(pyproject.toml --extra cpu --extra dev --overrides deploy/locks/cpu-overrides.txt)
if [[ -n $pip_find_links ]]; then
    UV_FIND_LINKS=$pip_find_links compile cpu.txt "${cpu[@]}"
else # nothing configured offers the CPU build of torch: uv knows PyTorch's own index for it
    compile cpu.txt "${cpu[@]}" --torch-backend cpu
fi
