#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The page of `kvist chart` in headless Chromium: it draws itself without a word on the console, its numbers are those of
# the report, views in the address work, and the prompt's text stays text. (test_chart.c reads its data.)
set -uo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
bin=${KVIST_BIN:-$root/build/kvist}
model=${KVIST_MODEL:-$root/models/SmolLM2-135M-Instruct.Q4_1.gguf}
for b in chromium chromium-browser google-chrome; do command -v $b >/dev/null && { browser=$b; break; }; done
[ -n "${browser:-}" ] || { echo "skipped: no Chromium"; exit 77; }
command -v python3 >/dev/null || { echo "skipped: python3 is not installed"; exit 77; }
[ -e "$model" ] || { echo "skipped: no model ($model)"; exit 77; }
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
wrong=0
complain() { echo "$1"; wrong=1; }

{
    head -c 3000 "$root/examples/kestrel-sound.txt"
    printf '\n</script><b id="owned">bold</b><script>document.title="owned"</script> \xff caf\xc3\xa9 \xf0\x9f\x90\x8b\n'
} >"$tmp/doc.txt"
"$bin" chart -m "$model" -f "$tmp/doc.txt" -p 'What is told here?' --kv snapkv,tokens=200 --kv minikv,share=0.2 \
    -o "$tmp/page.html" --json -q >"$tmp/rows.jsonl" || { echo "kvist chart failed"; exit 1; }

# One of the last lines on the console is Chromium's own talk; only CONSOLE lines are the page's.
show() { # NAME HASH [FLAG...]: the page as drawn, in NAME.dom; a screenshot in NAME.png
    local name=$1 hash=$2
    shift 2
    timeout 120 "$browser" --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --user-data-dir="$tmp/profile" \
        --hide-scrollbars --window-size=1200,1600 --enable-logging=stderr --virtual-time-budget=5000 "$@" \
        --dump-dom "file://$tmp/page.html$hash" >"$tmp/$name.dom" 2>"$tmp/$name.log" || complain "$name: the browser failed"
    grep 'CONSOLE' "$tmp/$name.log" && complain "$name: words on the console"
    grep -q 'data-ready="1"' "$tmp/$name.dom" || complain "$name: not drawn to the end"
    grep -q 'data-error' "$tmp/$name.dom" && complain "$name: an error"
    grep -q '<b id="owned"' "$tmp/$name.dom" && complain "$name: the prompt's text became an element"
}
show plain ''
show second '#kv=1&layer=7&head=2&by=mass&ink=head&at=40'
show nonsense '#kv=99&layer=x&head=-1&by=toString&at=1e9&&='

python3 - "$tmp" <<'EOF' || wrong=1
import html.parser, json, sys
tmp = sys.argv[1]
rows = [json.loads(l) for l in open(tmp + "/rows.jsonl")]

class Page(html.parser.HTMLParser):
    """Text by id of the innermost element with one; cells of the grids; spans of the text."""
    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.stack, self.text, self.cells, self.pieces, self.rows = [], {}, [], 0, 0
        self.feed(open(path, encoding="utf-8").read())
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if tag in ("input", "meta", "br"): return
        self.stack.append((tag, a.get("id")))
        self.cells += [a] if a.get("class") == "cell" else []
        ids = [i for _, i in self.stack if i]
        self.pieces += tag == "span" and "words" in ids[-1:]
        self.rows += tag == "tr" and "policies" in ids
    def handle_endtag(self, tag):
        while self.stack and self.stack.pop()[0] != tag: pass
    def handle_data(self, s):
        for _, i in self.stack:
            if i: self.text[i] = self.text.get(i, "") + s

wrong = []
def expect(what, ok):
    if not ok: wrong.append(what)
plain, second, nonsense = (Page(tmp + "/" + n + ".dom") for n in ("plain", "second", "nonsense"))
streams = len(plain.cells) // 2
expect("cells of both policies", len(plain.cells) == 2 * streams > 0)
for page, k in ((plain, 0), (second, 1)):
    n, r = rows[k]["tokens_seen"], rows[k]
    kept = round(r["tokens_stored"] * streams)
    want = f"{kept:,} of {n * streams:,} keys and values are kept ({100 * kept / (n * streams):.1f}\u202f%)"
    expect(f"'{want}' in '{page.text['map-note']}'", want in page.text["map-note"])
    for one in rows:
        share = (one["bytes_true"] - one["bytes_positions"]) / one["bytes_f16"]
        for cell in (one["policy"], f"{100 * share:.1f}\u202f%", f"{one['mass_mean']:.3f}", f"{one['mass_min']:.3f}"):
            expect(f"'{cell}' in the table", cell in page.text["policies"])
chosen = [c for c in second.cells if c["aria-selected"] == "true"]
expect("one chosen cell", len(chosen) == 1 and chosen[0]["aria-label"].startswith("layer 7, head 2: "))
mass = chosen[0]["aria-label"].split(": ")[1]
expect("the chosen head's words", second.text["said"].startswith("Layer 7, head 2: ") and "attention mass " + mass in second.text["said"])
expect("the token at 40", "token 40 of" in second.text["spoken"])
expect("nonsense shows the first view", nonsense.text["said"] == plain.text["said"])
expect("the text", "</script><b id=\"owned\">bold</b>" in plain.text["words"] and "\ufffd caf\u00e9 \U0001f40b" in plain.text["words"])
expect("a span a piece", plain.pieces > rows[0]["tokens_seen"] * 0.9)
for w in wrong: print("wrong:", w)
sys.exit(bool(wrong))
EOF

timeout 120 "$browser" --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --user-data-dir="$tmp/profile" \
    --window-size=1200,1600 --screenshot="$tmp/shot.png" "file://$tmp/page.html" >/dev/null 2>&1
[ "$(wc -c <"$tmp/shot.png" 2>/dev/null || echo 0)" -gt 20000 ] || complain "no picture, or an empty one"
exit $wrong
