#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Makes the virtual environment FOLDER: make-venv.sh FOLDER. Installs the distribution's venv module
# where it is missing (Debian ships Python without it).
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
folder=$1

# One that works already may be somebody's own: it stays.
if "$folder/bin/python" -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
    exit 0
fi
python=$("$here/find-python.sh")

if ! "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    # No such command: so it is always installed.
    "$here/need-debian.sh" "no-venv-module:python$version-venv"
    "$python" -c 'import ensurepip, venv'
fi
echo "Making $folder with $("$python" --version) ($python)"
rm -rf "$folder"
"$python" -m venv "$folder"
