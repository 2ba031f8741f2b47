#!/bin/sh
# Installs the Debian or Ubuntu packages named as arguments, as far as they are missing.
# This is the one step that needs root: it says so, and uses sudo where it is not root already.
set -eu
if ! command -v dpkg-query >/dev/null 2>&1; then
    echo "This is no Debian or Ubuntu: make sure that the equivalents of these are installed: $*"
    exit 0
fi
missing=""
for package in "$@"; do
    # A virtual package (libjpeg-dev) counts when something installed provides it.
    if ! dpkg-query -W -f '${Status} ${Package} ${Provides}\n' 2>/dev/null |
        grep -q "^install ok installed.*[ ,]$package\([ ,(:]\|\$\)"; then
        missing="$missing $package"
    fi
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ]; then
    as_root=""
elif command -v sudo >/dev/null 2>&1; then
    as_root="sudo"
    echo "Root is needed once, to install:$missing"
else
    echo "Missing system packages; ask an administrator for: apt-get install$missing" >&2
    exit 1
fi
$as_root apt-get update -q
# shellcheck disable=SC2086  # a list of words
DEBIAN_FRONTEND=noninteractive $as_root apt-get install -q -y --no-install-recommends $missing
