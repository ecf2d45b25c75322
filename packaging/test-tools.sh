#!/bin/sh
# Installs the programs that tests need beside Python, from Debian, as root; else says which are missing. A test whose
# program is not there skips, loudly. Each line is a command and the package that has it.
# usage: packaging/test-tools.sh
set -eu
TOOLS="
chromium    chromium
fish        fish
man         man-db
nginx       nginx-light
openssl     openssl
promtool    -
zsh         zsh
"
say() { echo "test-tools: $*" >&2; }
export PATH="$PATH:/usr/sbin:/sbin"  # where nginx is

# The package of promtool would start a server and bring a hundred files for its pages: the one program is taken out.
take_promtool() {
    folder=$(mktemp -d)
    chmod 0755 "$folder"
    (cd "$folder" && apt-get download -qq prometheus) >/dev/null 2>&1 &&
        dpkg-deb --fsys-tarfile "$folder"/prometheus_*.deb | tar -x -C / --no-overwrite-dir ./usr/bin/promtool
    found=$?
    rm -rf "$folder"
    return $found
}

missing=$(echo "$TOOLS" | while read -r command package; do
    [ -z "$command" ] || command -v "$command" >/dev/null || echo "$command:$package"
done)
[ -n "$missing" ] || exit 0
names=$(echo "$missing" | cut -d: -f1 | tr '\n' ' ')
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    say "missing: $names; tests that need them will skip (as root on Debian this script installs them)"
    exit 0
fi

say "installing $names"
export DEBIAN_FRONTEND=noninteractive
timeout 180 apt-get update -qq >/dev/null || say "apt-get update has failed"
packages=$(echo "$missing" | cut -d: -f2 | grep -vx -e - || true)
# Tests bring servers of their own: what a package would start stays where it is.
masked=
case "$packages" in *nginx*) [ -e /etc/systemd/system/nginx.service ] || masked=nginx.service ;; esac
[ -z "$masked" ] || { mkdir -p /etc/systemd/system && ln -s /dev/null "/etc/systemd/system/$masked"; }
# shellcheck disable=SC2086
[ -z "$packages" ] || timeout 900 apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends $packages >/dev/null ||
    say "apt-get install has failed"
[ -z "$masked" ] || rm -f "/etc/systemd/system/$masked"
case "$missing" in *promtool*) take_promtool || say "promtool could not be had" ;; esac

for each in $names; do
    command -v "$each" >/dev/null || say "still missing: $each"
done
