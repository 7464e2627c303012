#!/bin/sh
# What one GPU does with a 7B, in about eight minutes: sh scripts/gpu_report.sh [--out FOLDER] [--dry] [--parts PART ...]
# Uses .venv if it is there, else PYTHON (python3), which needs torch, transformers and pip's names in pyproject.toml.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
[ -x .venv/bin/python ] && python=${PYTHON:-.venv/bin/python}
PYTHONPATH=. PYTHONUNBUFFERED=1 exec "$python" -m tests.benchmarks.gpu "$@"
