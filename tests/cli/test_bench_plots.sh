#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# bench/plots/speed draws what `kvist bench -o json` prints: a line a policy and a peer, in valid SVG.
set -uo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
for tool in gnuplot python3; do
    command -v $tool >/dev/null || { echo "skipped: $tool is not installed"; exit 77; }
done
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
wrong=0
expect() { # WHAT WANTED GOT
    [ "$2" = "$3" ] || { echo "$1: wanted '$2', got '$3'"; wrong=1; }
}
row() { # KV STAGE DEPTH TPS PEER
    local key=decode_tps other=prefill_tps
    [ "$2" = prompt ] && key=prefill_tps other=decode_tps
    printf '{"kv":"%s","stage":"%s","depth":%s,"batch":1,"%s":%s,"%s":null,"tps_min":%s,"tps_max":%s,"peers":[%s]}\n' \
        "$1" "$2" "$3" "$key" "$4" "$other" "$4" "$4" "$5"
}
peer='{"name":"other","cache":"f16","tps":20.5,"min":20,"max":21},{"name":"other","cache":"q8_0","tps":null,"min":null,"max":null}'
{
    row full decode 0 100 "$peer"
    row full decode 4096 40 "$peer"
    row minikv decode 0 100 ""
    row minikv decode 4096 90.5 ""
    row full prompt 0 900 ""
    printf '{"stage":"load","kv":"full","depth":0,"ttft_ms":100}\n\n'
} >"$tmp/r.jsonl"
"$root/bench/plots/speed" "$tmp/r.jsonl" "$tmp/decode.svg" || wrong=1
"$root/bench/plots/speed" --prompt --log "$tmp/r.jsonl" "$tmp/prompt.svg" || wrong=1
for f in decode prompt; do
    python3 -c 'import sys, xml.dom.minidom; d = xml.dom.minidom.parse(sys.argv[1]); sys.exit(d.documentElement.tagName != "svg")' \
        "$tmp/$f.svg" || { echo "$f.svg is no SVG"; wrong=1; }
done
names() { grep -oE '>(full|minikv|other|other q8_0)<' "$1" | sort -u | tr -d '\n'; }
expect 'lines of decoding' '>full<>minikv<>other<' "$(names "$tmp/decode.svg")"
expect 'lines of reading' '>full<' "$(names "$tmp/prompt.svg")"

"$root/bench/plots/speed" "$tmp/r.jsonl" 2>/dev/null
expect 'one argument' 2 $?
"$root/bench/plots/speed" "$tmp/none" "$tmp/x.svg" 2>/dev/null
expect 'no file' 2 $?
echo '{"stage":"load","kv":"full","depth":0}' >"$tmp/empty.jsonl"
"$root/bench/plots/speed" "$tmp/empty.jsonl" "$tmp/x.svg" 2>/dev/null
expect 'no row' 1 $?
expect 'nothing is written then' 1 "$([ -e "$tmp/x.svg" ]; echo $?)"
exit $wrong
