#!/bin/sh
# Renews the lock files from pyproject.toml: exact versions with hashes, for the package and for development.
# usage: packaging/lock.sh UV
set -eu
uv=$1
cd "$(dirname "$0")/.."
common="--quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate"
compile() {
    # shellcheck disable=SC2086
    "$uv" pip compile $common --custom-compile-command "make lock" "$@"
}
compile pyproject.toml --output-file packaging/requirements.lock
compile pyproject.toml --extra dev --output-file packaging/requirements-dev.lock
