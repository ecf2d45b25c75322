#!/bin/sh
# Runs all tests, by two workers since most tests wait most of the time (tests/sharing.py says who gets which); the few
# that fail run once more, alone. Most of the tests are real processes, services and browsers on whatever machine there
# is, and half an hour of them can meet a moment in which that machine stood still. What fails twice has failed. What
# passes the second time is named, because it leans on luck and has to be mended.
# usage: tests/all.sh PYTHON [PYTEST'S OPTIONS]
set -eu
python=$1
shift
MOST=5  # more than so many are no accident
LIST=.pytest_cache/v/cache/lastfailed
NAMES=.pytest_cache/failed
say() { echo "tests: $*" >&2; }

rm -f "$LIST"
status=0
"$python" -m pytest --numprocesses=2 --no-loadscope-reorder --durations=20 "$@" || status=$?
[ "$status" = 1 ] || exit "$status"
[ -e "$LIST" ] || exit 1  # a test that ended its worker has passed on the next one
"$python" -c 'import json, sys; print(*json.load(open(sys.argv[1])), sep="\n")' "$LIST" >"$NAMES"
count=$(wc -l <"$NAMES")
[ "$count" -le "$MOST" ] || exit 1

say "$count failed; what an accident was passes when it runs alone"
"$python" -m pytest "@$NAMES" || exit 1
say "PASSED ONLY WHEN RUN AGAIN, to be mended:"
cat "$NAMES" >&2
