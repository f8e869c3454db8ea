#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# kvist sweep --report prints a sweep of made-up samples as worked out by hand, draws it, and refuses what is no sweep.
set -uo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
kvist=${KVIST_BIN:-$root/build/kvist}
[ -x "$kvist" ] || { echo "skipped: $kvist is not built"; exit 77; }
case $kvist in /*) ;; *) kvist=$PWD/$kvist ;; esac
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
wrong=0
expect() { # WHAT WANTED GOT
    [ "$2" = "$3" ] || { printf '%s: wanted\n%s\ngot\n%s\n' "$1" "$2" "$3"; wrong=1; }
}
same() { # VALUE SHARE: four samples alike
    local v="[$1,$2,0.9,null,null]"
    echo "[$v,$v,$v,$v]"
}
kld() { # KLD SHARE NLL TOP1
    local v="[$1,$2,0.8,$3,$4]"
    echo "[$v,$v]"
}
samples='[{"id":"1","stratum":"x"},{"id":"2","stratum":"x"},{"id":"3","stratum":"y"},{"id":"4","stratum":"y"}]'
chunks='[{"id":"token-0","stratum":""},{"id":"token-9","stratum":""}]'
cat >"$tmp/sweep.json" <<JSON
{"kvist_sweep":1,"model":"m.gguf, llama","agnostic":false,"seed":1,"floor":0.97,"shares":[0.25,0.1],
"points":[{"method":"full","kv":"full","asked":null},{"method":"full,format=q4","kv":"full,format=q4","asked":null},
{"method":"a","kv":"a,share=0.25","asked":0.25},{"method":"b","kv":"b,share=0.25","asked":0.25},
{"method":"a","kv":"a,share=0.1","asked":0.1},{"method":"b","kv":"b,share=0.1","asked":0.1}],
"tasks":[{"name":"lines","kind":"score","strata":["x","y"],"samples":$samples,
"values":[$(same 0.8 1),$(same 0.8 0.3),$(same 0.76 0.25),$(same 0.78 0.24),$(same 0.4 0.12),$(same 0.2 0.1)]},
{"name":"kld","kind":"kld","strata":[""],"samples":$chunks,
"values":[$(kld 0 1 2 1),$(kld 0.01 0.3 2.01 0.97),$(kld 0.02 0.25 2.02 0.95),$(kld 0.03 0.24 2 0.94),$(kld 0.1 0.1 2.1 0.9),[null,null]]}]}
JSON

# q4 is as good as full in lines at fewer bytes: there full is not on the front. Ratios: .76/.8 = .95, exp(-.02) = .980; mean .965. b at 25 %: .975 and exp(-.03) = .970 -> .973 at 24 % bytes: it leads in
# the mean, a certainly beats it in kld but loses in lines: neither is put aside. b at 10 % has no kld yet: no mean.
"$kvist" sweep --report --out "$tmp" >"$tmp/md" 2>"$tmp/err" || { cat "$tmp/err"; wrong=1; }
expect head 'm.gguf, llama; question known when the context is compressed; seed 1; lines: n = 4, kld: n = 2' "$(head -1 "$tmp/md")"
expect titles '| method | asked | true | met | lines | ratio | kld KLD, top-1, ppl | ratio | mean ratio | >= 0.97 |' "$(sed -n 3p "$tmp/md" | tr -s ' ')"
row() { grep -F "| $1 " "$tmp/md" | grep -F " $2 " | tr -s ' '; }
expect 'row of full' '| full | - | 100.0 % | - | 0.800 (0.800..0.800) | 1.000 (1.000..1.000) | 0.0000, 100.0 %, 1.000 | 1.000* (1.000..1.000) | 1.000* (1.000..1.000) | met |' "$(row full '100.0 %')"
expect 'row of q4' '| full,format=q4 | - | 30.0 % | - | 0.800 (0.800..0.800) | 1.000* (1.000..1.000) | 0.0100, 97.0 %, 1.010 | 0.990* (0.990..0.990) | 0.995* (0.995..0.995) | met |' "$(row full,format=q4 '30.0 %')"
expect 'row of a' '| a | 25 % | 25.0 % | yes | 0.760 (0.760..0.760) | 0.950 (0.950..0.950) | 0.0200, 95.0 %, 1.020 | 0.980* (0.980..0.980) | 0.965 (0.965..0.965) | missed |' "$(row a '25 %')"
expect 'row of a, too large' '| a | 10 % | 11.0 % | 2 of 6 | 0.400 (0.400..0.400) | 0.500* (0.500..0.500) | 0.1000, 90.0 %, 1.105 | 0.905* (0.905..0.905) | 0.702* (0.702..0.702) | missed |' "$(row a '10 %')"
expect 'row of b, not yet run' '| b | 10 % | - | 4 of 4 | 0.200 (0.200..0.200) | 0.250* (0.250..0.250) | - | - | - | missed |' "$(row b '10 %' | sed 's/yes/4 of 4/')"
expect 'recommended' "  at 25 %: --kv 'b,share=0.25' ratio 0.973 (0.973..0.973), 24.0 % true, >= 0.97 met
  at 10 %: no point keeps to it" "$(grep '^  at' "$tmp/md" | sed 's/   / /')"
expect 'another floor' met "$("$kvist" sweep --report --out "$tmp" --floor 0.95 -o json 2>/dev/null | python3 -c '
import sys, json
print([json.loads(l) for l in sys.stdin][2]["floor_met"])' 2>/dev/null || echo no python3)"
expect 'lines of csv' 13 "$("$kvist" sweep --report --out "$tmp" -o csv 2>/dev/null | wc -l)"
expect 'strata' 'lines by stratum, ratios; n: x 2, y 2' "$("$kvist" sweep --report --out "$tmp" --by-stratum 2>/dev/null | grep stratum)"

if command -v gnuplot >/dev/null; then
    names() { grep -oE '>(full|full,format=q4|a|b|front|lines|kld|mean of the tasks)<' "$1" | sort -u | tr -d '\n'; }
    all='>a<>b<>front<>full,format=q4<>full<>kld<>lines<>mean of the tasks<'
    expect 'names in the plot' "$(tr '>' '\n' <<<"$all" | sort)" "$(names "$tmp/pareto.svg" | tr '>' '\n' | sort)"
    expect 'a PNG' PNG "$(head -c 4 "$tmp/pareto.png" | tail -c 3)"
    "$root/bench/plots/pareto" "$tmp" "$tmp/again.svg" || wrong=1
    expect 'drawn again' "$(names "$tmp/pareto.svg")" "$(names "$tmp/again.svg")"
    "$root/bench/plots/pareto" "$tmp" "$tmp/again.txt" 2>/dev/null
    expect 'neither svg nor png' 2 $?
else
    echo 'gnuplot is not installed: no plot was looked at'
fi
"$root/bench/plots/pareto" 2>/dev/null
expect 'no folder' 2 $?

refuse() { # WHAT TEXT WORD
    mkdir -p "$tmp/r"
    printf '%s' "$2" >"$tmp/r/sweep.json"
    "$kvist" sweep --report --out "$tmp/r" >/dev/null 2>"$tmp/err"
    expect "$1: exit" 1 $?
    grep -q "$3" "$tmp/err" || { echo "$1: '$(cat "$tmp/err")' does not name $3"; wrong=1; }
}
refuse 'no JSON' '{"kvist_sweep":1' 'sweep.json:1'
refuse 'another version' '{"kvist_sweep":2}' kvist_sweep
refuse 'no points' '{"kvist_sweep":1,"model":"m","seed":1,"floor":0.9,"shares":[]}' points
one='"model":"m","seed":1,"floor":0.9,"shares":[],"points":[{"method":"full","kv":"full","asked":null}]'
refuse 'values of another size' "{\"kvist_sweep\":1,$one,\"tasks\":[{\"name\":\"t\",\"kind\":\"score\",\"strata\":[],\"samples\":$samples,\"values\":[[null]]}]}" values
refuse 'a kind of its own' "{\"kvist_sweep\":1,$one,\"tasks\":[{\"name\":\"t\",\"kind\":\"best\",\"strata\":[],\"samples\":[],\"values\":[[]]}]}" tasks
"$kvist" sweep --report --out "$tmp/none" >/dev/null 2>&1
expect 'no file' 1 $?
"$kvist" sweep --report >/dev/null 2>&1
expect 'no folder named' 2 $?
exit $wrong
