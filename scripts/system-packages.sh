#!/bin/sh
# Installs the Debian or Ubuntu packages named as arguments, as far as they are missing.
# This is the one step that needs root: it says so, and uses sudo where it is not root already.
#
# What a package is wanted for counts, where that can be tried: a compiler, headers or a Python that
# come from elsewhere are as good. PYTHON and CC name others than python3 and cc.
set -eu
python=${PYTHON:-python3}

compiles() { # compiles LINK_FLAGS LINE_OF_C...: whether a program of these lines can be built
    flags=$1
    shift
    # shellcheck disable=SC2086  # lists of words
    printf '%s\n' "$@" 'int main(void) { return 0; }' | ${CC:-cc} -x c - $flags -o /dev/null 2>/dev/null
}

installed() { # a virtual package (libjpeg-dev) is there when something installed provides it
    [ -n "$have_dpkg" ] || return 1
    # shellcheck disable=SC2016  # dpkg's fields, not ours
    dpkg-query -W -f '${db:Status-Status}, ${Package}, ${Provides}\n' 2>/dev/null |
        awk -F ', *' -v name="$1" '
            $1 == "installed" { for (i = 2; i <= NF; i++) { sub(/[ :(].*/, "", $i); found = found || $i == name } }
            END { exit !found }'
}

present() {
    case $1 in
    gcc | libc6-dev) compiles "" '#include <stdio.h>' ;;
    libyaml-dev) compiles -lyaml '#include <yaml.h>' ;;
    libjpeg-dev) compiles -ljpeg '#include <stddef.h>' '#include <stdio.h>' '#include <jpeglib.h>' ;;
    python3-venv) "$python" -c 'import venv, ensurepip' 2>/dev/null ;;
    python3-dev) "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' 2>/dev/null ;;
    make) command -v make >/dev/null ;;
    *) installed "$1" ;;
    esac
}

have_dpkg=$(command -v dpkg-query || true)
missing=""
for package in "$@"; do
    present "$package" || installed "$package" || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ -z "$have_dpkg" ]; then
    echo "This is no Debian or Ubuntu: the equivalents of these packages seem to be missing:$missing" >&2
    exit 0 # the build says what it does not find
fi
if [ "$(id -u)" = 0 ]; then
    as_root=""
elif command -v sudo >/dev/null 2>&1; then
    as_root="sudo"
    echo "Root is needed once, to install:$missing"
else
    echo "Missing system packages; ask an administrator for: apt-get install$missing" >&2
    exit 1
fi
$as_root apt-get update -q || echo "apt-get update failed: trying with the package lists that are here" >&2
# shellcheck disable=SC2086  # a list of words
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing
