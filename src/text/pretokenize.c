/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Cutting text into words before byte-level BPE: one to four patterns applied one after another, each to the pieces
 * the one before left (matches and what lies between them). Must not know: vocabularies.
 * Classes are Unicode's White_Space, L and N. \s is written out: PCRE2's own also holds U+180E, which is no white
 * space.
 */
#include <stdbool.h> /* before pcre2.h's own headers */

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "base/alloc.h"
#include "text/vocab.h"

#include <string.h>

#define WS "\\t-\\r \\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define S "[" WS "]"
#define SHORT_FORMS "'s|'t|'re|'ve|'m|'ll|'d"
#define SHORT_FORMS_ANY_CASE "'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
#define GPT2 SHORT_FORMS "| ?\\p{L}+| ?\\p{N}+| ?[^" WS "\\p{L}\\p{N}]+|" S "+(?![^" WS "])|" S "+"
/* digits: how a run of numbers is cut */
#define LLAMA3(digits)                                                                                                 \
    SHORT_FORMS_ANY_CASE "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits "| ?[^" WS "\\p{L}\\p{N}]+[\\r\\n]*|" S              \
                         "*[\\r\\n]+|" S "+(?![^" WS "])|" S "+"

#define MAX_STAGES 4

static const struct pattern {
    const char *names; /* as tokenizer.ggml.pre writes them, the first is ours; each ends with a space */
    const char *stage[MAX_STAGES];
    bool ignore_merges, add_bos;
} patterns[] = {
    {"gpt-2 ", {GPT2}, false, false},
    {"llama-bpe llama3 llama-v3 ", {LLAMA3("\\p{N}{1,3}")}, true, true},
    {"qwen2 deepseek-r1-qwen ", {LLAMA3("\\p{N}")}, false, false},
    /* Single numbers first, then GPT-2's pattern inside what is left: the end of a piece is the end of the text. */
    {"smollm ", {"\\p{N}", GPT2}, false, false},
    {"default ", {"[\\p{P}$+<=>^~|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"}, false, false},
};

struct kv_pre {
    const struct pattern *pattern;
    char name[16];
    int n;
    pcre2_code *code[MAX_STAGES];
    pcre2_general_context *general;
};

static void *pcre_malloc(PCRE2_SIZE n, void *ctx) {
    (void)ctx;
    return kv_malloc(n);
}
static void pcre_free(void *p, void *ctx) {
    (void)ctx;
    kv_free(p);
}

static const struct pattern *find(const char *name) {
    size_t len = strlen(name);
    if (!len || strchr(name, ' ')) return NULL;
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++) {
        for (const char *p = patterns[i].names; *p; p = strchr(p, ' ') + 1)
            if ((size_t)(strchr(p, ' ') - p) == len && memcmp(p, name, len) == 0) return &patterns[i];
    }
    return NULL;
}

kv_status kv_pre_create(const char *name, kv_pre **out, kv_error *err) {
    *out = NULL;
    const struct pattern *pattern = find(name);
    if (!pattern)
        KV_FAIL(err, UNSUPPORTED,
                "pre-tokenizer '%s' is not supported (known: gpt-2, llama-bpe, qwen2, smollm, default)", name);
    kv_pre *p = kv_calloc(1, sizeof *p);
    if (!p) KV_FAIL(err, MEMORY, "no memory for the pre-tokenizer");
    *out = p;
    p->pattern = pattern;
    memcpy(p->name, pattern->names, strcspn(pattern->names, " "));
    p->general = pcre2_general_context_create(pcre_malloc, pcre_free, NULL);
    pcre2_compile_context *compile = p->general ? pcre2_compile_context_create(p->general) : NULL;
    kv_status status = compile ? KVIST_OK : kv_fail(err, KVIST_E_MEMORY, "no memory for the pre-tokenizer");
    for (; status == KVIST_OK && p->n < MAX_STAGES && pattern->stage[p->n]; p->n++) {
        int code;
        PCRE2_SIZE at;
        p->code[p->n] = pcre2_compile((PCRE2_SPTR)pattern->stage[p->n], PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP,
                                      &code, &at, compile);
        if (!p->code[p->n]) {
            status = code == PCRE2_ERROR_HEAP_FAILED
                         ? kv_fail(err, KVIST_E_MEMORY, "no memory for the pattern of pre-tokenizer '%s'", name)
                         : kv_fail(err, KVIST_E_UNSUPPORTED,
                                   "pre-tokenizer '%s': this PCRE2 refuses its pattern at %zu (error %d)", name,
                                   (size_t)at, code);
            break;
        }
        (void)pcre2_jit_compile(p->code[p->n],
                                PCRE2_JIT_COMPLETE); /* without JIT the interpreter gives the same words */
    }
    if (compile) pcre2_compile_context_free(compile);
    if (status != KVIST_OK) kv_pre_free(out);
    return status;
}

void kv_pre_free(kv_pre **pp) {
    kv_pre *p = *pp;
    if (!p) return;
    for (int i = 0; i < MAX_STAGES; i++)
        if (p->code[i]) pcre2_code_free(p->code[i]);
    if (p->general) pcre2_general_context_free(p->general);
    kv_free(p);
    *pp = NULL;
}

const char *kv_pre_name(const kv_pre *p) { return p->name; }
bool kv_pre_ignore_merges(const kv_pre *p) { return p->pattern->ignore_merges; }
bool kv_pre_add_bos(const kv_pre *p) { return p->pattern->add_bos; }
void kv_pre_free_match(void *match) { pcre2_match_data_free(match); }

static kv_status split_stage(const kv_pre *p, int stage, kv_encoder *e, const char *text, size_t len) {
    if (stage == p->n) return kv_bpe_word(e, text, len);
    size_t pos = 0;
    while (pos < len) {
        int rc = pcre2_match(p->code[stage], (PCRE2_SPTR)text, len, pos, PCRE2_NO_UTF_CHECK, e->match, NULL);
        if (rc == PCRE2_ERROR_NOMATCH) break;
        if (rc < 0) KV_FAIL(e->err, MEMORY, "pre-tokenizer '%s': PCRE2 error %d", p->name, rc);
        const PCRE2_SIZE *v = pcre2_get_ovector_pointer(e->match);
        size_t from = v[0], to = v[1]; /* the next stage overwrites v */
        if (to <= from) break;
        if (from > pos) KV_TRY(split_stage(p, stage + 1, e, text + pos, from - pos));
        KV_TRY(split_stage(p, stage + 1, e, text + from, to - from));
        pos = to;
    }
    return pos < len ? split_stage(p, stage + 1, e, text + pos, len - pos) : KVIST_OK;
}

kv_status kv_pre_split(const kv_pre *p, kv_encoder *e, const char *text, size_t len) {
    if (!e->match) e->match = pcre2_match_data_create(1, p->general);
    if (!e->match) KV_FAIL(e->err, MEMORY, "no memory to match the pre-tokenizer's pattern");
    return split_stage(p, 0, e, text, len);
}
