/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Page formats: how K and V of the tokens of one stream lie in one page. docs/page-formats.md is the byte-level
 * specification. A page's format is a pair (K format, V format) of equal kind.
 *
 * Kinds
 *   F16     K [dk][P] f16 (channel major), V [P][dv] f16.
 *   Q8      K u8 [dk][P], f16 scale and min per channel; V u8 [P][dv], f16 scale and min per token. min/max.
 *   LADDER  K: channels ranked by weight, blocks of 8 with 0..6 bits by reverse water-filling; V: token scale x channel
 *           affine, uniform bits. Bit planes in 8x8 tiles. (DESIGN 4, research page-formats)
 *   GROUP   the literature's: K per channel over groups of g consecutive tokens, V per token over groups of g channels,
 *           b bits, f16 scale and min (kivi2, kivi4: g = 32; minikv2: g = 16). A short last group is allowed.
 */
#ifndef KV_POLICY_FORMAT_H
#define KV_POLICY_FORMAT_H

#include "cache/pool.h"

enum kv_format_id { KV_F16, KV_Q8, KV_Q4, KV_Q3, KV_Q2, KV_Q2S, KV_Q1, KV_KIVI4, KV_KIVI2, KV_MINIKV2, KV_FORMATS };
enum kv_format_kind { KV_KIND_F16, KV_KIND_Q8, KV_KIND_LADDER, KV_KIND_GROUP };

typedef struct kv_format {
    const char *name;
    uint8_t kind;
    uint8_t k_bits2; /* LADDER: mean K bits x 2 (q2: 5); others: K bits x 2 */
    uint8_t v_bits;
    uint8_t group;     /* GROUP: g */
    uint8_t code_bits; /* precision of query and probability codes in attention: 16 or 8; 0: f32 */
} kv_format;
extern const kv_format kv_formats[KV_FORMATS];

static inline uint8_t kv_format_pair(uint8_t k, uint8_t v) { return (uint8_t)(k | (v << 4)); }

/* Slots a page has at most, whatever its size: bounds the scratch of encoders and kernels. (A layer with small heads in
 * a model whose pages are made for 256; q1 at head_dim 64 in a 16 KiB page has 552.) */
#define KV_PAGE_TOKENS_MAX 1024u

/* Byte offsets inside a page for (format pair, dk, dv, page_bytes); offsets not used by a kind are 0. dkp, dvp: padded.
 */
typedef struct kv_page_layout {
    uint8_t kf, vf, kind, v_bits;
    uint16_t tokens; /* P: slots; a multiple of 8 (Q8: of 4; F16, GROUP: of 8) */
    uint16_t dk, dv, dkp, dvp;
    uint16_t k_block_bits; /* LADDER: sum over blocks of their widths */
    uint32_t k_off, v_off; /* codes (LADDER: planes) */
    uint32_t triples_off;  /* LADDER: 8 x {smax, lo, step} f16: K widths 0..6, then V */
    uint32_t k_scale_off, k_min_off, k_order_off, v_scale_off, v_min_off, a_off, e0_off;
    uint32_t k_groups, v_groups; /* GROUP: groups along tokens; along channels */
    uint32_t bytes_used;
    uint32_t page_bytes; /* as given: the encoder clears the whole page */
} kv_page_layout;
/* KVIST_E_POLICY when the pair is not built, or the page cannot hold 8 tokens. */
kv_status kv_page_layout_get(uint8_t pair, uint32_t dk, uint32_t dv, size_t page_bytes, kv_page_layout *out,
                             kv_error *err) KV_WARN_UNUSED;

/* "q4" or "q4/q2" -> pair. */
kv_status kv_format_parse(const char *text, size_t len, uint8_t *pair, kv_error *err) KV_WARN_UNUSED;
void kv_format_print(uint8_t pair, char *buf, size_t cap);
/* Tokens of f16 that a page is made for; a tail token lies in slot position % KV_PAGE_F16_TOKENS of its page. */
#define KV_PAGE_F16_TOKENS 16u
/* Page size of a model: align64(32 * max over layers of (dk + dv)). */
static inline size_t kv_page_bytes_for(uint32_t dk, uint32_t dv) {
    return (2u * KV_PAGE_F16_TOKENS * (size_t)(((dk + 15) & ~15u) + ((dv + 15) & ~15u)) + 63) & ~(size_t)63;
}

/* Encodes n <= P tokens, k[n][dk], v[n][dv] f16 token-major, q2[dk] mean squared query (ones where unknown), into
 * `page`; fills e->format, n, start = 0, k_widths. Spare bytes and unused slots become 0: equal input, equal bytes.
 * Scratch: kv_encode_scratch(l) bytes, 64-aligned. Deterministic, round-half-even, safe for constant and NaN input (NaN
 * counts as 0). */
size_t kv_encode_scratch(const kv_page_layout *l);
/* Enough for any format with head dimensions up to max_dim in pages of page_bytes. */
size_t kv_encode_scratch_bound(size_t page_bytes, uint32_t max_dim);
void kv_encode_ref(const kv_page_layout *l, uint32_t n, const uint16_t *k, const uint16_t *v, const float *q2,
                   uint8_t *page, kv_page_entry *e, void *scratch);
/* The decode formula, plainly: k[n][dk], v[n][dv] f32 token-major. The oracle of every kernel. */
void kv_decode_ref(const kv_page_layout *l, const uint8_t *page, const kv_page_entry *e, float *k, float *v);

#endif
