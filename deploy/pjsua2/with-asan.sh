#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Runs a command with the pjsua2 that AddressSanitizer and (our C++) UndefinedBehaviorSanitizer watch: with-asan.sh INTERPRETER COMMAND...
# What it finds ends the process in which it is found, is shown here at the end, and makes exit 1.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
python=$1
shift
place=$here/../../.cache/pjsua2-asan
reports=$place/reports

mkdir -p "$place"
sh "$here/build.sh" "$python" --sanitize | tee "$place/build.log"
rm -rf "$place/pjsua2" "$reports"
"$python" -m zipfile -e "$(tail -n 1 "$place/build.log")" "$place"
mkdir "$reports"

status=0
# The interpreter frees little of its own at its end. The wrapper is not sanitized, so containers
# that cross it have no annotations. Without the C++ library beside it, libasan finds no throw to call
# on, and each exception of pjsua2's would end the process.
PYTHONPATH="$place${PYTHONPATH:+:$PYTHONPATH}" \
    LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libstdc++.so.6)" \
    ASAN_OPTIONS="detect_leaks=0:detect_container_overflow=0:quarantine_size_mb=32:log_path=$reports/asan" \
    UBSAN_OPTIONS="print_stacktrace=1:log_path=$reports/ubsan" \
    PJSUA2_ASAN=1 "$@" || status=$?
for report in "$reports"/*; do
    [ -e "$report" ] || exit $status
    cat "$report"
    status=1
done
exit $status
