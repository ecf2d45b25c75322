#!/bin/sh
# Builds build/vllmd_VERSION_ARCH.deb: vllmd and what it needs from the lock file, for all Pythons of PYTHONS at once,
# since only the names of their compiled modules differ. The network is needed for the first part alone.
# usage: packaging/deb/build.sh PYTHON [VERSION]      PYTHON: one with pip, to fetch with
set -eu
PYTHONS="3.11 3.12 3.13"  # Debian 12, Ubuntu 24.04, Debian 13; debian/control says the same
say() { echo "deb: $*" >&2; }

python=$(realpath --no-symlinks "$1")
cd "$(dirname "$0")/../.."
version=${2:-$(sed -n 's/^__version__ = "\(.*\)"/\1/p' vllmd/__init__.py)}
# Programs of the system's, and none of a virtual environment or a version manager before it.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
for package in debhelper dpkg-dev lintian; do
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing="${missing-} $package"
done
[ -z "${missing-}" ] || {
    say "these packages are missing:$missing" "(apt-get install --no-install-recommends$missing)"
    exit 1
}

deb=build/vllmd_${version}_$(dpkg --print-architecture).deb
inputs="packaging vllmd etc systemd README.md ARCHITECTURE.md SECURITY.md CHANGELOG.md"
# shellcheck disable=SC2086
if [ -e "$deb" ] && [ -z "$(find $inputs -name __pycache__ -prune -o -newer "$deb" -print -quit)" ]; then
    echo "$deb"
    exit
fi

vendor=build/vendor-$(sha256sum packaging/requirements.lock "$0" | sha256sum | cut -c 1-12)
if [ ! -d "$vendor" ]; then
    rm -rf build/vendor-* && mkdir -p "$vendor.new"
    for each in $PYTHONS; do
        say "fetching what Python $each needs"
        "$python" -m pip install -qq --disable-pip-version-check --no-warn-conflicts --require-hashes --no-deps \
            --no-compile --upgrade --python-version "$each" --target build/vendor-one -r packaging/requirements.lock
        cp -a build/vendor-one/. "$vendor.new"
        rm -rf build/vendor-one
    done
    mv "$vendor.new" "$vendor"
fi

source=build/deb/vllmd-$version
rm -rf build/deb && mkdir -p "$source"
cp -a packaging/deb/debian "$source"
# shellcheck disable=SC2086
cp -a $inputs packaging/man packaging/completions "$source"
cp -al "$vendor" "$source/vendor"
cat > "$source/debian/changelog" <<EOF
vllmd ($version) unstable; urgency=medium

  * CHANGELOG.md tells what is new.

 -- The maintainers of vllmd <maintainers@vllmd.invalid>  $(date -R -d "@${SOURCE_DATE_EPOCH:-$(stat -c %Y CHANGELOG.md)}")
EOF
say "building vllmd $version"
(cd "$source" && dpkg-buildpackage --build=binary --unsigned-changes --unsigned-source) > build/deb/log 2>&1 || {
    tail -n 40 build/deb/log >&2
    exit 1
}
say "asking lintian"
lintian --allow-root --fail-on warning,error --suppress-tags bad-distribution-in-changes-file "build/deb/vllmd_$version"_*.changes
mv "build/deb/$(basename "$deb")" build
touch "$deb"
echo "$deb"
