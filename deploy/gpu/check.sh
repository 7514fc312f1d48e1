#!/usr/bin/env bash
# Is this machine's GPU able to run the product, and how fast? At most eight minutes; every part has its own deadline.
#   deploy/gpu/check.sh                    on a machine with one GPU, set up (`make setup-gpu`) or with PYTHON naming an
#                                          interpreter that finds torch, vllm, ray, deepspeed, transformers and peft
#   deploy/gpu/check.sh --cpu              the same on CPU with tiny models, to see that the check itself works
# --help lists the rest. Figures: runs/gpu-check/check.json and check.md, beside the log of every part.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-${MI_EPO_VENV:-.venv}/bin/python}
command -v "$python" >/dev/null || {
    echo "check: no interpreter at $python (make setup-gpu makes one; PYTHON names another)" >&2
    exit 2
}
exec "$python" -m orchestrator.bench.check "$@"
