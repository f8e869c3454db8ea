/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Chat templates as families: one row of texts per family and one renderer, instead of a Jinja interpreter.
 * Rows and small differences (default system text, BOS) are recognised in the model's own template. Must not know:
 * tokenizers. Invariant: either the text is what that template renders, or the call fails with the reason.
 */
#include "text/chat.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum bos { BOS_NEVER, BOS_FIRST, BOS_EACH_USER, BOS_AS_JINJA };
/* A leading system message: its own turn; in front of the first or the last user text; none in this template. */
enum system { SYS_OWN, SYS_FIRST_USER, SYS_LAST_USER, SYS_NONE };
enum flags {
    TRIM_USER = 1,
    TRIM_ASSISTANT = 2,
    TRIM_ALL = 3,
    EOS_ASSISTANT = 4, /* EOS after each assistant text */
    EOS_ALL = 8,       /* ... after every text */
    EOS_LAST = 16,     /* ... at the end when no answer is asked for and the template says eos_token */
    ALTERNATE = 32,    /* user and assistant must take turns */
    ANY_ROLE = 64,     /* other roles are written by their name between role_open and role_close */
    TRIM_JOINED = 128, /* the trimmed text is the one with the system text in front */
    THINKING = 256,    /* Qwen3: reasoning of earlier turns is dropped */
    SKIP_EMPTY_SYSTEM = 512
};

typedef struct family {
    const char *name;
    const char *system_open, *system_close; /* own turn, or around the system text inside the user's */
    const char *user_open, *user_close, *assistant_open, *assistant_close;
    const char *generation;
    const char *default_system;         /* NULL: none; a template's own replaces it */
    const char *role_open, *role_close; /* around the role's name, for ANY_ROLE and later system turns */
    int bos, system, flags;
} family;

#define IM(role) "<|im_start|>" role "\n"
#define IM_END "<|im_end|>\n"
#define CHATML(name, fallback, bos, flags)                                                                             \
    {                                                                                                                  \
        name, IM("system"), IM_END, IM("user"), IM_END, IM("assistant"), IM_END, IM("assistant"), fallback,            \
            "<|im_start|>", "\n", bos, SYS_OWN, flags                                                                  \
    }
#define HEADER(role) "<|start_header_id|>" role "<|end_header_id|>\n\n"
#define LLAMA3(name, after, fallback)                                                                                  \
    {                                                                                                                  \
        name, HEADER("system") after, "<|eot_id|>", HEADER("user"), "<|eot_id|>", HEADER("assistant"), "<|eot_id|>",   \
            HEADER("assistant"), fallback, "<|start_header_id|>", "<|end_header_id|>\n\n", BOS_FIRST, SYS_OWN,         \
            TRIM_ALL | ANY_ROLE                                                                                        \
    }
#define TURN(role) "<start_of_turn>" role "\n"
#define TURN_END "<end_of_turn>\n"

static const family families[] = {
    CHATML("chatml", NULL, BOS_AS_JINJA, ANY_ROLE),
    CHATML("smollm", "You are a helpful AI assistant named SmolLM, trained by Hugging Face", BOS_NEVER, ANY_ROLE),
    CHATML("qwen2", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.", BOS_NEVER, 0),
    CHATML("qwen3", NULL, BOS_NEVER, THINKING),
    {"llama2", "<<SYS>>\n", "\n<</SYS>>\n\n", "[INST] ", " [/INST]", " ", " ", "", NULL, NULL, NULL, BOS_EACH_USER,
     SYS_FIRST_USER, TRIM_ALL | TRIM_JOINED | EOS_ASSISTANT | ALTERNATE},
    LLAMA3("llama3", "", NULL),
    /* 3.1 and later say the date; this one is the template's own where no clock is given to it. */
    LLAMA3("llama3.1", "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n", ""),
    {"mistral", "", "", "[INST] ", " [/INST]", "", "", "", NULL, NULL, NULL, BOS_FIRST, SYS_NONE,
     EOS_ASSISTANT | ALTERNATE},
    {"mistral-v1", "", "\n\n", " [INST] ", " [/INST]", " ", "", "", NULL, NULL, NULL, BOS_FIRST, SYS_FIRST_USER,
     EOS_ASSISTANT | ALTERNATE},
    {"mistral-v3", "", "\n\n", "[INST] ", "[/INST]", " ", "", "", NULL, NULL, NULL, BOS_FIRST, SYS_LAST_USER,
     TRIM_ASSISTANT | EOS_ASSISTANT | ALTERNATE},
    {"mistral-v3-tekken", "", "\n\n", "[INST]", "[/INST]", "", "", "", NULL, NULL, NULL, BOS_FIRST, SYS_LAST_USER,
     EOS_ASSISTANT | ALTERNATE},
    {"mistral-v7", "[SYSTEM_PROMPT] ", "[/SYSTEM_PROMPT]", "[INST] ", "[/INST]", " ", "", "", NULL, NULL, NULL,
     BOS_FIRST, SYS_OWN, EOS_ASSISTANT},
    {"zephyr", "<|system|>\n", "\n", "<|user|>\n", "\n", "<|assistant|>\n", "\n", "<|assistant|>\n", NULL, NULL, NULL,
     BOS_NEVER, SYS_OWN, EOS_ALL},
    {"gemma", "", "", TURN("user"), TURN_END, TURN("model"), TURN_END, TURN("model"), NULL, NULL, NULL, BOS_FIRST,
     SYS_NONE, TRIM_ALL | ALTERNATE},
    {"gemma3", "", "\n\n", TURN("user"), TURN_END, TURN("model"), TURN_END, TURN("model"), NULL, NULL, NULL, BOS_FIRST,
     SYS_FIRST_USER, TRIM_ALL | ALTERNATE},
    {"phi3", "<|system|>\n", "<|end|>\n", "<|user|>\n", "<|end|>\n", "<|assistant|>\n", "<|end|>\n", "<|assistant|>\n",
     NULL, NULL, NULL, BOS_AS_JINJA, SYS_OWN, EOS_LAST | SKIP_EMPTY_SYSTEM},
};
#define N_FAMILIES (sizeof families / sizeof *families)

static const family *find(const char *name) {
    for (size_t i = 0; name && i < N_FAMILIES; i++)
        if (strcmp(families[i].name, name) == 0) return &families[i];
    return NULL;
}

bool kv_chat_known(const char *name) { return find(name) != NULL; }
const char *kv_chat_families(void) {
    return "chatml, smollm, qwen2, qwen3, llama2, llama3, llama3.1, mistral, mistral-v1, mistral-v3, "
           "mistral-v3-tekken, mistral-v7, "
           "zephyr, gemma, gemma3, phi3";
}

/* ---- recognising */

static bool has(const char *jinja, const char *s) { return strstr(jinja, s) != NULL; }

/* The system text that a ChatML template writes when the conversation brings none: the literal between
 * "<|im_start|>system", a newline (real or \n) and "<|im_end|>". False where it is put together from variables. */
static bool own_system(const char *jinja, const char **text, size_t *len) {
    static const char open[] = "<|im_start|>system";
    for (const char *p = strstr(jinja, open); p; p = strstr(p, open)) {
        p += sizeof open - 1;
        if (*p == '\n')
            p++;
        else if (p[0] == '\\' && p[1] == 'n')
            p += 2;
        else
            continue;
        const char *end = strstr(p, "<|im_end|>");
        if (!end) return false;
        size_t n = (size_t)(end - p);
        if (n == 0 || memchr(p, '{', n) || memchr(p, '}', n) || *p == '\'' || *p == '"' || memchr(p, '\\', n)) continue;
        *text = p;
        *len = n;
        return true;
    }
    return false;
}

static const char *detect_chatml(const char *j) {
    if (has(j, "<|im_sep|>") || has(j, "<end_of_utterance>") || has(j, "You are a function calling AI model"))
        return NULL;
    if (has(j, "<think>") || has(j, "</think>")) {
        bool qwen3 = has(j, "last_query_index") && has(j, "enable_thinking is false") && !has(j, "macro ") &&
                     !has(j, "bos_token") && !has(j, "assistant\\n<think>\\n'");
        return qwen3 ? "qwen3" : NULL;
    }
    const char *system;
    size_t len;
    if (!own_system(j, &system, &len)) return "chatml";
    if (len >= 50 && memmem(system, len, "SmolLM", 6)) return "smollm";
    return has(j, "tool_call") && memmem(system, len, "You are ", 8) ? "qwen2" : "chatml";
}

static const char *detect_inst(const char *j) {
    if (has(j, "[SYSTEM_PROMPT]")) /* newer ones bring a default system text with dates, which this does not render */
        return has(j, "[SYSTEM_PROMPT] ") && !has(j, "default_system_message") ? "mistral-v7" : NULL;
    if (has(j, "<<SYS>>")) return has(j, "bos_token + '[INST]") && has(j, "content.strip()") ? "llama2" : NULL;
    if (has(j, "' [INST] ' + system_message") || has(j, "\" [INST] \" + system_message")) return "mistral-v1";
    if (has(j, "[AVAILABLE_TOOLS]")) return has(j, "\"[INST]\"") ? "mistral-v3-tekken" : "mistral-v3";
    return has(j, "'[INST] ' + message['content'] + ' [/INST]'") ? "mistral" : NULL;
}

const char *kv_chat_detect(const char *j) {
    if (!j) return NULL;
    if (has(j, "<|im_start|>")) return detect_chatml(j);
    if (has(j, "[INST]")) return detect_inst(j);
    if (has(j, "<|start_header_id|>")) {
        if (!has(j, "| trim + '<|eot_id|>'") && !has(j, "|trim + '<|eot_id|>'"))
            return NULL; /* someone's own turn format */
        return has(j, "Cutting Knowledge Date") ? "llama3.1" : "llama3";
    }
    if (has(j, "<start_of_turn>")) return has(j, "first_user_prefix") ? "gemma3" : "gemma";
    if (has(j, "<|assistant|>") && has(j, "<|user|>") && has(j, "<|end|>")) return has(j, "tool_calls") ? NULL : "phi3";
    if (has(j, "<|assistant|>") && has(j, "<|user|>\\n' + message['content'] + eos_token")) return "zephyr";
    return NULL;
}

/* ---- rendering */

typedef struct writer {
    char *buf;
    size_t cap, len;
} writer;

static void put_n(writer *w, const char *s, size_t n) {
    if (n && w->len < w->cap) memcpy(w->buf + w->len, s, n < w->cap - w->len ? n : w->cap - w->len);
    w->len += n;
}
static void put(writer *w, const char *s) { put_n(w, s, strlen(s)); }

/* White space as Python's str.strip() sees it; bytes of the character at s, or 0. */
static size_t space_at(const char *s, size_t n) {
    const uint8_t *p = (const uint8_t *)s;
    if (n >= 1 && ((p[0] >= 9 && p[0] <= 13) || (p[0] >= 0x1c && p[0] <= 0x20))) return 1;
    if (n >= 2 && p[0] == 0xc2 && (p[1] == 0x85 || p[1] == 0xa0)) return 2;
    if (n < 3) return 0;
    uint32_t c = (uint32_t)p[0] << 16 | (uint32_t)p[1] << 8 | p[2];
    bool space = c == 0xe19a80 || (c >= 0xe28080 && c <= 0xe2808a) || c == 0xe280a8 || c == 0xe280a9 || c == 0xe280af ||
                 c == 0xe2819f || c == 0xe38080;
    return space ? 3 : 0;
}

typedef struct span {
    const char *s;
    size_t n;
} span;

static span trim(span x, bool left, bool right) {
    for (size_t k; left && (k = space_at(x.s, x.n)) != 0;) {
        x.s += k;
        x.n -= k;
    }
    for (bool more = right; more;) {
        more = false;
        for (size_t k = 1; k <= 3 && k <= x.n; k++)
            if (space_at(x.s + x.n - k, k) == k) {
                x.n -= k;
                more = true;
                break;
            }
    }
    return x;
}

static span strip_newlines(span x, bool left, bool right) {
    while (left && x.n && *x.s == '\n') {
        x.s++;
        x.n--;
    }
    while (right && x.n && x.s[x.n - 1] == '\n') x.n--;
    return x;
}

/* The last (or first) occurrence of word in x, NULL: none. */
static const char *find_in(span x, const char *word, bool last) {
    size_t len = strlen(word);
    const char *hit = NULL;
    for (const char *p = x.s; (p = memmem(p, x.n - (size_t)(p - x.s), word, len)) != NULL; p += len) {
        hit = p;
        if (!last) break;
    }
    return hit;
}

/* Qwen3's assistant turn: reasoning stays only after the last question, and there is an empty one for the last message.
 */
static void put_thinking(writer *w, const char *content, bool after_question, bool last) {
    span x = {content, strlen(content)}, thought = {"", 0};
    const char *end = find_in(x, "</think>", true);
    if (end) {
        thought = strip_newlines((span){x.s, (size_t)(find_in(x, "</think>", false) - x.s)}, false, true);
        const char *open = find_in(thought, "<think>", true);
        if (open) thought = (span){open + 7, thought.n - (size_t)(open + 7 - thought.s)};
        thought = strip_newlines(thought, true, true);
        x = strip_newlines((span){end + 8, x.n - (size_t)(end + 8 - x.s)}, true, false);
    }
    if (after_question && (last || thought.n)) {
        put(w, "<think>\n");
        put_n(w, thought.s, thought.n);
        put(w, "\n</think>\n\n");
        x = strip_newlines(x, true, false);
    }
    put_n(w, x.s, x.n);
}

typedef struct conversation {
    const family *f;
    const char *jinja, *bos, *eos;
    const kvist_message *m;
    size_t n;
    size_t first;       /* first message after the leading system message */
    const char *system; /* text of that message, NULL: none */
    size_t last_user;   /* index, n - 1 when there is none */
} conversation;

static void put_text(writer *w, const char *text, bool both, bool right_only) {
    span x = trim((span){text, strlen(text)}, both && !right_only, both);
    put_n(w, x.s, x.n);
}

static void put_user(writer *w, const conversation *c, size_t i) {
    const family *f = c->f;
    bool with_system =
        c->system && ((f->system == SYS_FIRST_USER && i == c->first) || (f->system == SYS_LAST_USER && i + 1 == c->n));
    if (f->bos == BOS_EACH_USER) put(w, c->bos);
    put(w, f->user_open);
    if (with_system) {
        put(w, f->system_open);
        put(w, c->system);
        put(w, f->system_close);
    }
    put_text(w, c->m[i].content, f->flags & TRIM_USER, with_system && f->flags & TRIM_JOINED);
    if (f->flags & EOS_ALL) put(w, c->eos);
    put(w, f->user_close);
}

static void put_assistant(writer *w, const conversation *c, size_t i) {
    const family *f = c->f;
    put(w, f->assistant_open);
    if (f->flags & THINKING)
        put_thinking(w, c->m[i].content, i > c->last_user, i + 1 == c->n);
    else
        put_text(w, c->m[i].content, f->flags & TRIM_ASSISTANT, false);
    if (f->flags & EOS_ALL) put(w, c->eos);
    put(w, f->assistant_close);
    if (f->flags & EOS_ASSISTANT) put(w, c->eos);
    /* Mistral 7B v0.1 alone has a space after EOS. */
    if (f->flags & EOS_ASSISTANT && c->jinja && strcmp(f->name, "mistral") == 0 && has(c->jinja, "eos_token + ' '"))
        put(w, " ");
}

/* A system turn; open: what stands before the text. */
static void put_system(writer *w, const conversation *c, const char *open, span text) {
    if (text.n == 0 && c->f->flags & SKIP_EMPTY_SYSTEM) return;
    put(w, open);
    if (c->f->flags & TRIM_USER) text = trim(text, true, true);
    put_n(w, text.s, text.n);
    if (c->f->flags & EOS_ALL) put(w, c->eos);
    put(w, c->f->system_close);
}

static void put_leading_system(writer *w, const conversation *c) {
    if (c->f->system != SYS_OWN) return;
    span text = {c->system, c->system ? strlen(c->system) : 0};
    if (!c->system) {
        bool chatml = c->f->role_open && strncmp(c->f->role_open, "<|im_start|>", 12) == 0;
        bool own = chatml && c->jinja && own_system(c->jinja, &text.s, &text.n);
        if (!own && !c->f->default_system) return;
        if (!own) text = (span){c->f->default_system, strlen(c->f->default_system)};
    }
    put_system(w, c, c->f->system_open, text);
}

/* A message that is neither the user's nor the assistant's, after the first. */
static kv_status put_other(writer *w, const conversation *c, size_t i, kv_error *err) {
    const family *f = c->f;
    const char *role = c->m[i].role;
    bool system = strcmp(role, "system") == 0;
    span text = {c->m[i].content, strlen(c->m[i].content)};
    if (system && f->system == SYS_OWN && !f->role_open) {
        put_system(w, c, f->system_open, text);
        return KVIST_OK;
    }
    if (!f->role_open || !(system || f->flags & ANY_ROLE))
        KV_FAIL(err, UNSUPPORTED, "message %zu: the chat template '%s' has no place for role '%s' here", i, f->name,
                role);
    put(w, f->role_open);
    put(w, role);
    put_system(w, c, f->role_close, text);
    return KVIST_OK;
}

static kv_status put_messages(writer *w, const conversation *c, kv_error *err) {
    const family *f = c->f;
    for (size_t i = c->first; i < c->n; i++) {
        bool user = strcmp(c->m[i].role, "user") == 0, assistant = strcmp(c->m[i].role, "assistant") == 0;
        if (f->flags & ALTERNATE && (user || assistant) && user != ((i - c->first) % 2 == 0))
            KV_FAIL(
                err, ARG,
                "message %zu: the chat template '%s' wants user and assistant to take turns, beginning with the user",
                i, f->name);
        if (user)
            put_user(w, c, i);
        else if (assistant)
            put_assistant(w, c, i);
        else
            KV_TRY(put_other(w, c, i, err));
    }
    return KVIST_OK;
}

kv_status kv_chat_format(const char *name, const char *jinja, const char *bos, const char *eos, const kvist_message *m,
                         size_t n, bool add_generation_prompt, char *buf, size_t cap, size_t *len, kv_error *err) {
    *len = 0;
    const family *f = find(name);
    if (!f)
        KV_FAIL(err, UNSUPPORTED, "unknown chat template '%s'; known: %s", name ? name : "(none)", kv_chat_families());
    conversation c = {.f = f,
                      .jinja = jinja,
                      .bos = bos ? bos : "",
                      .eos = eos ? eos : "",
                      .m = m,
                      .n = n,
                      .last_user = n ? n - 1 : 0};
    for (size_t i = 0; i < n; i++) {
        if (!m[i].role || !m[i].content) KV_FAIL(err, ARG, "message %zu has no %s", i, m[i].role ? "content" : "role");
        if (strcmp(m[i].role, "user") == 0) c.last_user = i;
    }
    if (n && strcmp(m[0].role, "system") == 0) {
        if (f->system == SYS_NONE) KV_FAIL(err, UNSUPPORTED, "the chat template '%s' has no system message", f->name);
        c.system = m[0].content;
        c.first = 1;
    }
    writer w = {buf, cap, 0};
    if (f->bos == BOS_FIRST || (f->bos == BOS_AS_JINJA && jinja && has(jinja, "bos_token"))) put(&w, c.bos);
    put_leading_system(&w, &c);
    KV_TRY(put_messages(&w, &c, err));
    if (add_generation_prompt)
        put(&w, f->generation);
    else if (f->flags & EOS_LAST && (!jinja || has(jinja, "eos_token")))
        put(&w, c.eos);
    if (w.len < cap) buf[w.len] = 0;
    *len = w.len;
    return KVIST_OK;
}
