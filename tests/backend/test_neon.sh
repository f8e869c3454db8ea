#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The NEON level on a machine of another kind: the backend's tests, which compare every level with the reference and with double
# precision, built by a cross compiler and run under qemu; and the library, compiled for architectures that only have the reference.
#   KVIST_ARM64_CC, KVIST_ARM64_ROOT   another cross compiler; where the arm64 packages lie (default /, Debian's multiarch)
# Wants gcc-aarch64-linux-gnu, qemu-user and, of the architecture arm64, libcmocka-dev:
#   dpkg --add-architecture arm64 && apt-get update && apt-get install libcmocka-dev:arm64
# Emulation takes 200 s of two idle processors, and a shared machine twice or thrice that:
# timeout: 900
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
skip() { echo "skipped: $*"; exit 77; }
[ -z "${SAN:-}" ] || skip "the sanitizers are for this machine's code"
case $(uname -m) in aarch64 | arm64) skip "this machine's own tests run the NEON level" ;; esac
cc=${KVIST_ARM64_CC:-aarch64-linux-gnu-gcc} root=${KVIST_ARM64_ROOT:-}
libs=$root/usr/lib/aarch64-linux-gnu
command -v "$cc" >/dev/null || skip "$cc is missing (Debian: gcc-aarch64-linux-gnu)"
qemu=$(command -v qemu-aarch64 || command -v qemu-aarch64-static) || skip "qemu-aarch64 is missing (Debian: qemu-user)"
[ -e "$libs/libcmocka.so" ] || skip "no libcmocka.so for arm64 in $libs (Debian: libcmocka-dev:arm64)"

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
# What the surrounding make was told is not for this one. CLI and text need libraries of their own; the backend does not.
cross() {
    env -u MAKEFLAGS -u MFLAGS -u MAKELEVEL -u CFLAGS -u OPT make -j"$(nproc)" --no-print-directory BUILD="$tmp" CC="$cc" CFLAGS=-Werror OPT=-O2 \
        MODULES='base gguf cache policy backend' PKGS= CLI_PKGS= TEST_PKGS= LDFLAGS="-L$libs -Wl,-rpath-link,$libs" "$@" >"$tmp/build.log" 2>&1 ||
        { tail -n 40 "$tmp/build.log"; exit 1; }
}
# The loader is the packages' own where there is one (libc6:arm64), else the cross compiler's.
loader=$root/
[ -e "$loader/lib/ld-linux-aarch64.so.1" ] || loader=/usr/aarch64-linux-gnu
emulate() { "$qemu" -L "$loader" -E LD_LIBRARY_PATH="$libs" "$@"; }

programs=(matmul attn_pages attn_rows encode matmul_wide elem)
cross "${programs[@]/#/$tmp/tests/backend/test_}"
wrong=0

# The level follows what the processor has: cortex-a53 has no dot products.
cat >"$tmp/level.c" <<'END'
#include <stdio.h>
#include "base/cpu.h"
int main(void) { puts(kv_cpu_level_name(kv_cpu_detect())); return 0; }
END
"$cc" -Isrc -o "$tmp/level" "$tmp/level.c" "$tmp/libkvist.a" -lm -pthread || exit 1
expect() { [ "$2" = "$3" ] || { echo "$1: wanted '$2', got '$3'"; wrong=1; }; }
expect 'level of a processor with everything' neon "$(emulate -cpu max "$tmp/level")"
expect 'level without dot products' ref "$(emulate -cpu cortex-a53 "$tmp/level")"
expect 'level lowered by KVIST_CPU' ref "$(emulate -cpu max -E KVIST_CPU=ref "$tmp/level")"

# As many at a time as there are processors, the longest first.
printf '%s\n' "${programs[@]}" | xargs -P "$(nproc)" -I{} sh -c '"$@" >"$0/{}.log" 2>&1; echo $? >"$0/{}.rc"' \
    "$tmp" "$qemu" -L "$loader" -E LD_LIBRARY_PATH="$libs" "$tmp/tests/backend/test_{}"
for p in "${programs[@]}"; do
    if [ "$(cat "$tmp/$p.rc")" = 0 ]; then
        sed -n "s/^\[  PASSED  \]/$p:/p" "$tmp/$p.log"
    else
        echo "------ $p, exit $(cat "$tmp/$p.rc")"
        tail -n 40 "$tmp/$p.log"
        wrong=1
    fi
done
exit $wrong
