#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The judges are judged: run-tests counts what it is given, check-includes and check-style find what is planted, ./run knows its
# words. Works in a folder of its own.
set -uo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
wrong=0
expect() { # WHAT WANTED GOT
    [ "$2" = "$3" ] || { echo "$1: wanted '$2', got '$3'"; wrong=1; }
}
program() { # NAME TEXT STATUS: a stand-in for a test program
    printf '#!/bin/sh\ncat <<"END"\n%s\nEND\n%s\n' "$2" "$3" >"$tmp/$1"
    chmod +x "$tmp/$1"
}
ok_two='[ RUN      ] a
[       OK ] a
[ RUN      ] b
[       OK ] b
[==========] 2 test(s) run.
[  PASSED  ] 2 test(s).'
mixed='[ RUN      ] a
[       OK ] a
[ RUN      ] b
[  FAILED  ] b
[ RUN      ] c
[  SKIPPED ] c
[==========] 3 test(s) run.
[  PASSED  ] 1 test(s).
[  SKIPPED ] 1 test(s), listed below:
[  SKIPPED ] c
[  FAILED  ] 1 test(s), listed below:
[  FAILED  ] b'
begun='[ RUN      ] a
[       OK ] a
[ RUN      ] b'
program two "$ok_two" 'exit 0'
program leak "$ok_two" 'exit 1'
program mixed "$mixed" 'exit 1'
program crash "$begun" 'kill -SEGV $$'
program plain '' 'exit 0'
program skip '' 'exit 77'
program bad '' 'exit 3'
program hang "$begun" 'sleep 30'
program long '' '# timeout: 20
sleep 1.2'
closing() { KVIST_TEST_TIMEOUT=1 "$root/scripts/run-tests" "$@" 2>&1 | tail -n 1; }
expect 'all pass' '2 passed, 0 failed, 0 skipped' "$(closing "$tmp/two")"
expect 'a failure after the sum' '2 passed, 1 failed, 0 skipped' "$(closing "$tmp/leak")"
expect 'mixed' '1 passed, 1 failed, 1 skipped' "$(closing "$tmp/mixed")"
expect 'a crash' '1 passed, 1 failed, 0 skipped' "$(closing "$tmp/crash")"
expect 'plain programs' '1 passed, 1 failed, 1 skipped' "$(closing "$tmp/plain" "$tmp/skip" "$tmp/bad")"
expect 'a hang' '1 passed, 1 failed, 0 skipped' "$(closing "$tmp/hang")"
expect 'a timeout of its own' '1 passed, 0 failed, 0 skipped' "$(closing "$tmp/long")"
expect 'no such program' '0 passed, 1 failed, 0 skipped' "$(closing "$tmp/none")"
expect 'the sum of several' '6 passed, 3 failed, 1 skipped' "$(closing -j 2 "$tmp/two" "$tmp/leak" "$tmp/mixed" "$tmp/crash")"
"$root/scripts/run-tests" "$tmp/two" >/dev/null 2>&1
expect 'status when all pass' 0 $?
"$root/scripts/run-tests" "$tmp/mixed" >/dev/null 2>&1
expect 'status when one fails' 1 $?

mkdir -p "$tmp/tree/src/base" "$tmp/tree/src/cache" "$tmp/tree/src/engine"
head='/* SPDX-License-Identifier: Apache-2.0 */'
printf '%s\n#include "base/a.h"\n#include "cache/c.h"\n' "$head" >"$tmp/tree/src/engine/e.c"
printf '%s\n#include "kvist/kvist.h"\n#include "a.h"\n' "$head" >"$tmp/tree/src/base/a.c"
"$root/scripts/check-includes" "$tmp/tree" >/dev/null
expect 'a lawful tree' 0 $?
"$root/scripts/check-style" "$tmp/tree" >/dev/null
expect 'a tidy tree' 0 $?
printf '%s\n#include "engine/e.h"\n' "$head" >"$tmp/tree/src/cache/c.c"
"$root/scripts/check-includes" "$tmp/tree" >/dev/null
expect 'an arrow upwards' 1 $?
printf '%s\n#include <sys/mman.h>\n' "$head" >"$tmp/tree/src/cache/c.c"
"$root/scripts/check-includes" "$tmp/tree" >/dev/null
expect 'a door beside os.h' 1 $?
printf 'int no_licence;\n' >"$tmp/tree/src/cache/c.c"
"$root/scripts/check-style" "$tmp/tree" >/dev/null
expect 'no SPDX line' 1 $?
{ echo "$head"; yes '' | head -n 1200; } >"$tmp/tree/src/cache/c.c"
"$root/scripts/check-style" "$tmp/tree" >/dev/null
expect '1,201 lines' 1 $?

"$root/run" frobnicate >/dev/null 2>&1
expect 'an unknown word' 2 $?
"$root/run" >/dev/null 2>&1
expect 'no word' 2 $?
KVIST_MODEL=$tmp/none "$root/scripts/fetch-model" >/dev/null 2>&1
expect 'a model that is not there' 1 $?
expect 'a model that is given' "$tmp/two" "$(KVIST_MODEL=$tmp/two "$root/scripts/fetch-model")"

# The demo's document: every fact stands in it once, in order, one in each tenth of the text.
doc=$root/examples/kestrel-sound.txt size=$(wc -c <"$root/examples/kestrel-sound.txt") n=0
while IFS=$'\t' read -r question answer; do
    case $question in "#"*) continue ;; esac
    at=$(grep -oboF -- "${answer%%|*}" "$doc" | cut -d: -f1)
    expect "'${answer%%|*}' occurs once" 1 "$(wc -w <<<"$at")"
    expect "'$question' stands in tenth $n" "$n" $((10 * at / size))
    n=$((n + 1))
done <"$root/examples/kestrel-sound.questions.tsv"
expect 'questions' 10 "$n"
exit $wrong
