#!/bin/sh
# Makes vllmd's own virtual environment for development, the demo and the tests: exact versions, checked by hash.
# usage: packaging/setup.sh DIRECTORY
set -eu
venv=$1
here=$(dirname "$0")
say() { echo "setup: $*" >&2; }
fail() { say "$1"; say "$2"; exit 1; }

python=${PYTHON:-python3}
command -v "$python" >/dev/null || fail "there is no $python" "install it:  apt install python3 python3-venv"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$python is $("$python" -V), vllmd needs 3.11 or newer" "name another:  make PYTHON=python3.11 …"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "this Python cannot make virtual environments" "install the module:  apt install python3-venv"

say "making $venv with $("$python" -V)"
"$python" -m venv --clear "$venv"
say "installing $(grep -c == "$here/requirements-dev.lock") packages"
"$venv/bin/python" -m pip install -qq --disable-pip-version-check --require-hashes \
    --requirement "$here/requirements-dev.lock" ||
    fail "pip could not install what vllmd needs" "see its words above; it reads pip's usual settings for mirrors"
"$venv/bin/python" -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation \
    --editable "$here/.."
touch "$venv/.complete"
say "done"
