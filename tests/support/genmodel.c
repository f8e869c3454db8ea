/* SPDX-License-Identifier: Apache-2.0 */
#include "support/genmodel.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "support/support.h"

typedef struct gen {
    const gen_spec *s;
    kv_gguf_writer *w;
    kv_error err;
    uint64_t rng;
    char key[96];
} gen;

static const char *const chatml = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
                                  "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
                                  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

gen_spec gen_spec_default(void) {
    return (gen_spec){.arch = "llama",
                      .n_layers = 2,
                      .n_embd = 64,
                      .n_heads = 4,
                      .n_kv = 2,
                      .head_dim = 16,
                      .n_ff = 128,
                      .n_vocab = 320,
                      .n_ctx = 4096,
                      .type = KV_TYPE_F32,
                      .seed = 1};
}

/* ---- metadata */

static const char *key(gen *g, const char *suffix) {
    snprintf(g->key, sizeof g->key, "%s.%s", g->s->arch, suffix);
    return g->key;
}

static kv_status arch_u32(gen *g, const char *suffix, uint32_t v) {
    return kv_gguf_put_u32(g->w, key(g, suffix), v, &g->err);
}
static kv_status arch_f32(gen *g, const char *suffix, float v) {
    return kv_gguf_put_f32(g->w, key(g, suffix), v, &g->err);
}

static uint32_t dim_v(const gen_spec *s) { return s->head_dim_v ? s->head_dim_v : s->head_dim; }

static kv_status put_rope(gen *g) {
    const gen_spec *s = g->s;
    const char *scaling = s->rope_scaling;
    KV_TRY(arch_f32(g, "rope.freq_base", s->rope_base > 0 ? s->rope_base : 10000.0f));
    KV_TRY(arch_u32(g, "rope.dimension_count", s->head_dim));
    if (s->window) KV_TRY(arch_u32(g, "attention.sliding_window", s->window));
    if (!scaling || !strcmp(scaling, "llama3"))
        return KVIST_OK; /* llama3: only the factors tensor, as the converter does */
    bool yarn = !strcmp(scaling, "yarn");
    if (!yarn && strcmp(scaling, "linear")) return kv_fail(&g->err, KVIST_E_ARG, "rope_scaling '%s'", scaling);
    KV_TRY(kv_gguf_put_str(g->w, key(g, "rope.scaling.type"), scaling, &g->err));
    KV_TRY(arch_f32(g, "rope.scaling.factor", yarn ? 4.0f : 2.0f));
    return yarn ? arch_u32(g, "rope.scaling.original_context_length", s->n_ctx / 4 ? s->n_ctx / 4 : 1) : KVIST_OK;
}

static kv_status put_hparams(gen *g) {
    const gen_spec *s = g->s;
    KV_TRY(kv_gguf_put_str(g->w, "general.architecture", s->arch, &g->err));
    KV_TRY(kv_gguf_put_str(g->w, "general.name", "kvist test model", &g->err));
    KV_TRY(arch_u32(g, "block_count", s->n_layers));
    KV_TRY(arch_u32(g, "context_length", s->n_ctx));
    KV_TRY(arch_u32(g, "embedding_length", s->n_embd));
    KV_TRY(arch_u32(g, "feed_forward_length", s->n_ff));
    KV_TRY(arch_u32(g, "attention.head_count", s->n_heads));
    KV_TRY(arch_u32(g, "attention.head_count_kv", s->n_kv));
    if (s->head_dim * s->n_heads != s->n_embd || dim_v(s) != s->head_dim) {
        KV_TRY(arch_u32(g, "attention.key_length", s->head_dim));
        KV_TRY(arch_u32(g, "attention.value_length", dim_v(s)));
    }
    KV_TRY(arch_f32(g, "attention.layer_norm_rms_epsilon", 1e-5f));
    KV_TRY(arch_u32(g, "vocab_size", s->n_vocab));
    return put_rope(g);
}

/* ---- tokenizer */

/* GPT-2's printable stand-in for each byte, as UTF-8: printable Latin-1 stands for itself, the others follow from
 * U+0100. */
static void byte_text(unsigned byte, char out[4]) {
    unsigned code = byte, others = 0;
    for (unsigned b = 0; b < 256; b++) {
        bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        if (b == byte && !printable) code = 256 + others;
        if (!printable) others++;
    }
    if (code < 128)
        snprintf(out, 4, "%c", (int)code);
    else
        snprintf(out, 4, "%c%c", (int)(0xc0 | code >> 6), (int)(0x80 | (code & 63)));
}

static kv_status put_tokenizer(gen *g) {
    /* U+0120, "\xc4\xa0", is the space's stand-in. */
    static const char *const merges[GEN_MERGES] = {"\xc4\xa0 t", "h e",        "\xc4\xa0t he", "i n",
                                                   "e r",        "\xc4\xa0 a", "in g",         "o u"};
    static const char *const merged[GEN_MERGES] = {"\xc4\xa0t", "he",        "\xc4\xa0the", "in",
                                                   "er",        "\304\240a", "ing",         "ou"};
    static const char *const special[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
    uint32_t n = g->s->n_vocab;
    if (n < GEN_VOCAB_MIN) return kv_fail(&g->err, KVIST_E_ARG, "n_vocab %u is below %d", n, GEN_VOCAB_MIN);
    char(*text)[24] = calloc(n, sizeof *text);
    const char **tokens = calloc(n, sizeof *tokens);
    int32_t *types = calloc(n, sizeof *types);
    for (uint32_t i = 0; i < n; i++) {
        if (i < 256)
            byte_text(i, text[i]);
        else if (i < GEN_EOT)
            snprintf(text[i], sizeof *text, "%s", merged[i - 256]);
        else if (i < GEN_VOCAB_MIN)
            snprintf(text[i], sizeof *text, "%s", special[i - GEN_EOT]);
        else
            snprintf(text[i], sizeof *text, "<extra_%u>", i - GEN_VOCAB_MIN);
        tokens[i] = text[i];
        types[i] = i >= GEN_EOT && i < GEN_VOCAB_MIN ? 3 : 1; /* control, normal */
    }
    kv_status st = kv_gguf_put_str(g->w, "tokenizer.ggml.model", "gpt2", &g->err);
    if (!st) st = kv_gguf_put_str(g->w, "tokenizer.ggml.pre", "gpt-2", &g->err);
    if (!st) st = kv_gguf_put_str_array(g->w, "tokenizer.ggml.tokens", tokens, n, &g->err);
    if (!st) st = kv_gguf_put_i32_array(g->w, "tokenizer.ggml.token_type", types, n, &g->err);
    if (!st) st = kv_gguf_put_str_array(g->w, "tokenizer.ggml.merges", merges, GEN_MERGES, &g->err);
    if (!st) st = kv_gguf_put_u32(g->w, "tokenizer.ggml.bos_token_id", GEN_EOT, &g->err);
    if (!st) st = kv_gguf_put_u32(g->w, "tokenizer.ggml.eos_token_id", GEN_IM_END, &g->err);
    if (!st) st = kv_gguf_put_bool(g->w, "tokenizer.ggml.add_bos_token", false, &g->err);
    if (!st) st = kv_gguf_put_str(g->w, "tokenizer.chat_template", chatml, &g->err);
    free(text);
    free(tokens);
    free(types);
    return st;
}

/* ---- tensors */

/* x[rows][cols] = row gain exp(spread n_row) x normal x sd. */
static kv_status matrix(gen *g, const char *name, uint32_t type, uint32_t cols, uint32_t rows, float sd, float spread) {
    const kv_type_info *info = kv_type_get(type);
    if (!info) return kv_fail(&g->err, KVIST_E_ARG, "type %u", type);
    if (cols % info->block) type = KV_TYPE_F16;
    float *x = malloc((size_t)rows * cols * sizeof *x);
    if (!x) return kv_fail(&g->err, KVIST_E_MEMORY, "%s", name);
    for (uint32_t r = 0; r < rows; r++) {
        float gain = sd * expf(spread * test_normal(&g->rng));
        for (uint32_t c = 0; c < cols; c++) x[(size_t)r * cols + c] = gain * test_normal(&g->rng);
    }
    kv_status st = kv_gguf_put_tensor(g->w, name, type, cols, rows, x, &g->err);
    free(x);
    return st;
}

/* x[n] = mean + sd normal, f32. */
static kv_status vector(gen *g, const char *name, uint32_t n, float mean, float sd) {
    float *x = malloc(n * sizeof *x);
    if (!x) return kv_fail(&g->err, KVIST_E_MEMORY, "%s", name);
    for (uint32_t i = 0; i < n; i++) x[i] = mean + sd * test_normal(&g->rng);
    kv_status st = kv_gguf_put_tensor(g->w, name, KV_TYPE_F32, n, 1, x, &g->err);
    free(x);
    return st;
}

/* Llama 3's frequency factors: 1 for short wavelengths, 8 for long ones, smooth between; trained context n_ctx / 8. */
static kv_status rope_factors(gen *g) {
    const gen_spec *s = g->s;
    float f[128];
    double base = s->rope_base > 0 ? (double)s->rope_base : 10000, old = s->n_ctx / 8.0, low = 1, high = 4, factor = 8;
    if (s->head_dim / 2 > 128) return kv_fail(&g->err, KVIST_E_ARG, "head_dim %u", s->head_dim);
    for (uint32_t i = 0; i < s->head_dim / 2; i++) {
        double wave = 6.283185307179586 * pow(base, 2.0 * i / s->head_dim);
        double smooth = (old / wave - low) / (high - low);
        f[i] = (float)(wave < old / high ? 1 : wave > old / low ? factor : 1 / ((1 - smooth) / factor + smooth));
    }
    return kv_gguf_put_tensor(g->w, "rope_freqs.weight", KV_TYPE_F32, s->head_dim / 2, 1, f, &g->err);
}

static kv_status put_layer(gen *g, uint32_t i) {
    const gen_spec *s = g->s;
    char name[64];
#define NAME(suffix) (snprintf(name, sizeof name, "blk.%u." suffix, i), name)
    bool qwen2 = !strcmp(s->arch, "qwen2"), qwen3 = !strcmp(s->arch, "qwen3");
    uint32_t nq = s->n_heads * s->head_dim, nk = s->n_kv * s->head_dim, nv = s->n_kv * dim_v(s),
             no = s->n_heads * dim_v(s);
    uint32_t tv = s->mixed ? s->type_v : s->type;
    float in = 1 / sqrtf((float)s->n_embd), residual = 1 / sqrtf(2.0f * (float)s->n_layers);
    /* Scores q.k / sqrt(head_dim) then have a deviation near 1.6 x 1.6; the gain gives K channels unequal ranges, as
     * real models have them. With QK norms the norm's weights do it. */
    KV_TRY(vector(g, NAME("attn_norm.weight"), s->n_embd, 1, 0.2f));
    KV_TRY(matrix(g, NAME("attn_q.weight"), s->type, s->n_embd, nq, 1.6f * in, 0));
    KV_TRY(matrix(g, NAME("attn_k.weight"), s->type, s->n_embd, nk, 1.4f * in, 0.5f));
    KV_TRY(matrix(g, NAME("attn_v.weight"), tv, s->n_embd, nv, in, 0.2f));
    KV_TRY(matrix(g, NAME("attn_output.weight"), s->type, no, s->n_embd, residual / sqrtf((float)no), 0));
    if (qwen2) {
        KV_TRY(vector(g, NAME("attn_q.bias"), nq, 0, 0.5f));
        KV_TRY(vector(g, NAME("attn_k.bias"), nk, 0, 1));
        KV_TRY(vector(g, NAME("attn_v.bias"), nv, 0, 0.3f));
    }
    if (qwen3) {
        KV_TRY(vector(g, NAME("attn_q_norm.weight"), s->head_dim, 1.6f, 0.3f));
        KV_TRY(vector(g, NAME("attn_k_norm.weight"), s->head_dim, 1.6f, 0.5f));
    }
    KV_TRY(vector(g, NAME("ffn_norm.weight"), s->n_embd, 1, 0.2f));
    KV_TRY(matrix(g, NAME("ffn_gate.weight"), s->type, s->n_embd, s->n_ff, in, 0));
    KV_TRY(matrix(g, NAME("ffn_up.weight"), s->type, s->n_embd, s->n_ff, in, 0));
    /* silu(gate) x up has a deviation near 0.6. */
    return matrix(g, NAME("ffn_down.weight"), tv, s->n_ff, s->n_embd, residual / (0.6f * sqrtf((float)s->n_ff)), 0);
#undef NAME
}

static kv_status put_all(gen *g) {
    const gen_spec *s = g->s;
    float out = 3 / sqrtf((float)s->n_embd); /* the final norm gives unit activations */
    KV_TRY(put_hparams(g));
    KV_TRY(put_tokenizer(g));
    KV_TRY(matrix(g, "token_embd.weight", s->type, s->n_embd, s->n_vocab, s->tied ? out : 1, 0));
    KV_TRY(vector(g, "output_norm.weight", s->n_embd, 1, 0.2f));
    if (!s->tied) KV_TRY(matrix(g, "output.weight", s->type, s->n_embd, s->n_vocab, out, 0));
    if (s->rope_scaling && !strcmp(s->rope_scaling, "llama3")) KV_TRY(rope_factors(g));
    for (uint32_t i = 0; i < s->n_layers; i++) KV_TRY(put_layer(g, i));
    return KVIST_OK;
}

int gen_model(const gen_spec *spec, const char *path) {
    gen g = {.s = spec, .rng = spec->seed};
    kv_status st = kv_gguf_writer_create(&g.w, &g.err);
    if (!st) st = put_all(&g);
    if (!st) st = kv_gguf_write(g.w, path, &g.err);
    kv_gguf_writer_free(&g.w);
    if (st) fprintf(stderr, "gen_model: %s\n", g.err.message);
    return st ? -1 : 0;
}

int gen_temp_path(char *buf, int cap) {
    const char *dir = getenv("TMPDIR");
    int n = snprintf(buf, (size_t)cap, "%s/kvist-test-XXXXXX", dir && *dir ? dir : "/tmp");
    if (n >= cap) return -1;
    int fd = mkstemp(buf);
    if (fd < 0) return -1;
    close(fd);
    return 0;
}
