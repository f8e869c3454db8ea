/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The public header in one file: opens a model, reads a prompt through a compressed KV cache, prints the answer and what the
 * cache took.   usage: minimal MODEL.gguf [POLICY]      POLICY: "minikv", "kvcompress,share=0.14", "full,format=q2s" ...
 *
 *   cc -std=c11 examples/minimal.c $(pkg-config --cflags --libs kvist) -o minimal
 */
#include <kvist/kvist.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_NEW = 48 };

static const char question[] =
    "A ferry leaves the island at seven in the morning and again at four in the afternoon. It carries forty people and no cars. "
    "The crossing takes fifty minutes in summer and a little longer in winter. How many times a day does the ferry leave?";

/* Text -> chat template where the model has one -> ids. *ids is the caller's to free. */
static int prompt_ids(const kvist_model *model, const char *text, int32_t **ids, size_t *n, kvist_error *err) {
    const kvist_message message = {"user", text};
    char rendered[2048];
    size_t len = 0;
    unsigned flags = KVIST_TOK_SPECIAL;
    if (kvist_chat_render(model, NULL, &message, 1, true, rendered, sizeof rendered, &len, err) == KVIST_OK &&
        len < sizeof rendered) {
        text = rendered; /* the template's own markers are special tokens written in the text */
        flags |= KVIST_TOK_PARSE;
    }
    int status = kvist_tokenize(model, text, strlen(text), flags, NULL, 0, n, err); /* first call: how many? */
    if (status != KVIST_OK) return status;
    *ids = malloc(*n * sizeof **ids + 1);
    if (!*ids) return KVIST_E_MEMORY;
    return kvist_tokenize(model, text, strlen(text), flags, *ids, *n, n, err);
}

/* Greedy answer, token by token, to stdout. */
static int answer(const kvist_model *model, kvist_session *session, kvist_error *err) {
    for (int i = 0; i < MAX_NEW; i++) {
        int32_t id;
        int status = kvist_session_sample(session, NULL, &id, err);
        if (status != KVIST_OK) return status;
        if (kvist_token_is_end(model, id)) break;
        size_t len;
        const char *bytes = kvist_token_bytes(model, id, false, &len);
        fwrite(bytes, 1, len, stdout);
        status = kvist_session_decode(session, id, err);
        if (status != KVIST_OK) return status;
    }
    putchar('\n');
    return KVIST_OK;
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: %s MODEL.gguf [POLICY]\n", argv[0]);
        return 2;
    }
    kvist_error err = {KVIST_OK, ""};
    kvist_model *model = NULL;
    kvist_engine *engine = NULL;
    kvist_session *session = NULL;
    const kvist_engine_params params = {.n_ctx = 1024};
    int32_t *ids = NULL;
    size_t n = 0;

    int status = kvist_model_open(argv[1], NULL, &model, &err);
    if (status == KVIST_OK) status = kvist_engine_create(model, &params, &engine, &err);
    if (status == KVIST_OK) status = kvist_session_create(engine, argc > 2 ? argv[2] : "full", &session, &err);
    if (status == KVIST_OK) status = prompt_ids(model, question, &ids, &n, &err);
    if (status == KVIST_OK) status = kvist_session_sync(session, ids, n, &err); /* reads and compresses */
    if (status == KVIST_OK) status = answer(model, session, &err);
    if (status == KVIST_OK) {
        kvist_report report;
        kvist_session_report(session, &report);
        printf("[%s: %.0f of %llu tokens stored, %.1f%% of the bytes of an f16 cache]\n", report.policy,
               report.tokens_stored, (unsigned long long)report.tokens_seen, 100.0 * report.share);
    } else {
        fprintf(stderr, "%s: %s\n", kvist_status_name((kvist_status)status), err.message);
    }

    free(ids);
    kvist_session_close(&session); /* each accepts NULL: one way out for success and failure */
    kvist_engine_close(&engine);
    kvist_model_close(&model);
    return status == KVIST_OK ? 0 : 1;
}
