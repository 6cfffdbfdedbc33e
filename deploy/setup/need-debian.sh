#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Installs Debian packages whose command is missing: need-debian.sh COMMAND:PACKAGE...
# As root, or through sudo when that asks no question; otherwise says what to install, exit 1.
set -eu

packages=
for need in "$@"; do
    command -v "${need%%:*}" >/dev/null 2>&1 || packages="$packages ${need#*:}"
done
[ -n "$packages" ] || exit 0

as_root=
if [ "$(id -u)" -ne 0 ]; then
    if command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
        as_root="sudo -n"
    else
        as_root=no
    fi
fi
if [ "$as_root" = no ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "Missing here:$packages (Debian's and Ubuntu's names). Install, then run make again:" >&2
    echo "    apt-get install$packages      (as root)" >&2
    exit 1
fi
echo "Installing Debian packages:$packages"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# The lists of a fresh machine are empty or old; a repository that fails need not be the one we want.
DEBIAN_FRONTEND=noninteractive
export DEBIAN_FRONTEND
$as_root apt-get -qq update >"$log" 2>&1 </dev/null || true
# shellcheck disable=SC2086
if ! $as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get -qq -y --no-install-recommends -o DPkg::Lock::Timeout=120 install $packages >>"$log" 2>&1 </dev/null
then
    cat "$log" >&2
    echo "apt-get could not install:$packages" >&2
    exit 1
fi
