#!/bin/sh
# Creates the virtual environment for the Makefile's targets: sh setup.sh VENV SOURCE...
# A second run only compares a checksum with the stamp of the last one. Optional environment: PYTHON; TORCH_INDEX, the
# package index for torch. By default, Linux machines without an NVIDIA GPU use PyTorch's CPU index, all others the
# default one. Uses uv if it is installed, else pip.
set -eu
venv=$1
shift
here=$(pwd -P)
wanted="$(cat pyproject.toml setup.py constraints.txt setup.sh | cksum) $here"
cpu_index=https://download.pytorch.org/whl/cpu
stamp=$venv/.omni-r1-setup

if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && [ -x "$venv/bin/omni-r1" ] && [ -x "$venv/bin/python" ]; then
  exit 0
fi

new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

say() {
  printf '%s\n' "$*"
}

has_nvidia() {
  [ -e /dev/nvidia0 ] || (command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1)
}

answers() {
  "$venv/bin/python" -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=4)' "$1" >/dev/null 2>&1
}

uv=$(command -v uv || true)
install() {
  if [ -n "$uv" ]; then
    "$uv" pip install --python "$venv/bin/python" -c constraints.txt "$@"
  elif [ -t 2 ]; then
    "$venv/bin/python" -m pip install --disable-pip-version-check --no-compile -c constraints.txt "$@"
  else
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt "$@"
  fi
}

if [ ! -x "$venv/bin/python" ] || ! new_enough "$venv/bin/python" || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  python=
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.14 python}; do
    if new_enough "$candidate"; then
      python=$candidate
      break
    fi
  done
  if [ -z "$python" ]; then
    found=$( (${PYTHON:-python3} --version) 2>&1 || true)
    say "Omni-R1 Studio needs Python 3.11 or newer; found: ${found:-no python at all}."
    say "Install one (Debian and Ubuntu: apt-get install python3 python3-venv), or name it: make setup PYTHON=/path/to/python3.11"
    exit 2
  fi
  say "Creating $venv with $("$python" --version)"
  rm -rf "$venv"
  if [ -n "$uv" ]; then
    "$uv" venv --quiet --seed --python "$python" "$venv"
  elif ! "$python" -m venv "$venv"; then
    rm -rf "$venv"
    say "$python cannot make a virtual environment. Debian and Ubuntu keep that in a package of its own: apt-get install python3-venv"
    exit 2
  fi
fi

rm -f "$stamp"
index=${TORCH_INDEX:-}
size="about 0.5 GB"
if [ -z "$index" ] && [ "$(uname -s)" = Linux ]; then
  if has_nvidia; then
    size="several GB, with CUDA"
  elif answers "$cpu_index/torch/"; then
    index=$cpu_index
  else
    say "$cpu_index is unreachable: installing torch from the default index."
    size="about 0.5 GB; several GB if that index only has torch with CUDA"
  fi
fi
say "Installing packages with $([ -n "$uv" ] && echo uv || echo pip). First download: $size."
if [ -n "$index" ]; then
  say "Installing torch from $index"
  # A separate step without dependencies: each package comes from one index only.
  install --no-deps --index-url "$index" torch
fi
install -e '.[dev]'
# pip would compile every file, one after another: this takes all cores, leaves out what nothing here imports, and passes
# over what is no Python (templates)
"$venv/bin/python" -m compileall -q -j 0 -x '/(tests?|transformers/models)/' "$venv/lib" >/dev/null 2>&1 || :
"$venv/bin/python" -m compileall -q -j 0 "$@"
printf '%s\n' "$wanted" >"$stamp"
say "Ready."
