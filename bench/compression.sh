#!/bin/bash
# What the package would weigh under other compressions, and what unpacking it would take: a table for
# docs/decisions/0015-what-the-package-weighs.md.
# Usage: bench/compression.sh PACKAGE.deb [METHOD…]; a method is a compressor with its level, as in "zstd -9".
# Times are of the processor (seconds), so that other work on the host does not count much.
set -euo pipefail
package=${1:?usage: bench/compression.sh PACKAGE.deb [METHOD…]}
shift
[ $# -gt 0 ] || set -- "zstd -1" "zstd -3" "zstd -9" "zstd -15" "zstd -19" "zstd -9 --long=27" "xz -6"
work=$(mktemp -d -p "${TMPDIR:-/var/tmp}")
trap 'rm -rf "$work"' EXIT
TIMEFORMAT='%U %S'

# seconds COMMAND: processor time of a shell command.
seconds() { { time bash -c "$1" 2>/dev/null; } 2>&1 | awk '{printf "%.1f", $1 + $2}'; }

dpkg-deb --fsys-tarfile "$package" >"$work/data.tar"
printf '| compression | size (MB) | compressing (s) | decompressing (s) |\n|---|---|---|---|\n'
for method in "$@"; do
    packing=$(seconds "$method --threads=0 -c '$work/data.tar' >'$work/packed'")
    unpacking=$(seconds "${method%% *} --decompress -c '$work/packed' >/dev/null")
    printf '| %s | %d | %s | %s |\n' "$method" $(($(stat -c %s "$work/packed") / 1000000)) "$packing" "$unpacking"
done
