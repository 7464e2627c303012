#!/bin/sh
# Makes the virtual environment that every target of the Makefile uses: sh setup.sh VENV SOURCE...
# The second run costs a checksum: a stamp holds what was installed. Environment: PYTHON, TORCH_INDEX (both optional).
set -eu
venv=$1
shift
here=$(pwd -P)
wanted="$(cat pyproject.toml constraints.txt setup.sh | cksum) $here"
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
  if ! "$python" -m venv "$venv"; then
    rm -rf "$venv"
    say "$python cannot make a virtual environment. Debian and Ubuntu keep that in a package of its own: apt-get install python3-venv"
    exit 2
  fi
fi

rm -f "$stamp"
say "Installing packages (some minutes the first time)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile \
  ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -c constraints.txt -e '.[dev]'
# pip would compile every file, one after another: this takes all cores, leaves out what nothing here imports, and passes
# over what is no Python (templates)
"$venv/bin/python" -m compileall -q -j 0 -x '/(tests?|transformers/models)/' "$venv/lib" >/dev/null 2>&1 || :
"$venv/bin/python" -m compileall -q -j 0 "$@"
printf '%s\n' "$wanted" >"$stamp"
say "Ready."
