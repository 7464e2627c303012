#!/bin/sh
# Makes the virtual environment that every target of the Makefile uses: sh setup.sh VENV SOURCE...
# The second run costs a checksum: a stamp holds what was installed. Environment (optional): PYTHON; TORCH_INDEX, the
# package index to take torch from. Without it Linux machines without an NVIDIA GPU take PyTorch's CPU index, all others
# the default one. Uses uv where it is installed, else pip.
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
size="about 0.6 GB"
if [ -z "$index" ] && [ "$(uname -s)" = Linux ]; then
  if has_nvidia; then
    size="about 4 GB with CUDA"
  elif answers "$cpu_index/torch/"; then
    index=$cpu_index
  else
    say "$cpu_index does not answer: torch comes from the default index."
    size="0.6 GB, or about 4 GB if that index has torch with CUDA only"
  fi
fi
say "Installing packages with $([ -n "$uv" ] && echo uv || echo pip): $size to download the first time"
if [ -n "$index" ]; then
  say "torch comes from $index"
  # In a step of its own, without dependencies: each package is to come from one index only.
  install --no-deps --index-url "$index" torch
fi
install -e '.[dev]'
# pip would compile every file, one after another: this takes all cores, leaves out what nothing here imports, and passes
# over what is no Python (templates)
"$venv/bin/python" -m compileall -q -j 0 -x '/(tests?|transformers/models)/' "$venv/lib" >/dev/null 2>&1 || :
"$venv/bin/python" -m compileall -q -j 0 "$@"
printf '%s\n' "$wanted" >"$stamp"
say "Ready."
