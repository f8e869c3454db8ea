/* SPDX-License-Identifier: Apache-2.0 */
/* Chat families against Jinja2's own renderings (chat_expected.h), detection, limits of the buffer, refusals. */
#include "support/support.h"
#include "text/chat.h"
#include "text/tokenizer.h"

#include "chat_expected.h"

#define COUNT(a) (sizeof(a) / sizeof *(a))

static const char *jinja_of(const char *family) {
    for (size_t i = 0; i < COUNT(templates); i++)
        if (strcmp(templates[i].family, family) == 0) return templates[i].jinja;
    return NULL;
}

static void test_renderings(void **state) {
    for (size_t i = 0; i < COUNT(renderings); i++) {
        const struct rendering *r = &renderings[i];
        char buf[2048];
        size_t len;
        kv_error err = {0};
        kv_status s = kv_chat_format(r->family, jinja_of(r->family), "<s>", "</s>", talks[r->talk].m, talks[r->talk].n,
                                     r->answer, buf, sizeof buf, &len, &err);
        if (!r->text) {
            assert_int_not_equal(s, KVIST_OK);
            assert_true(strlen(err.message) > 10);
            continue;
        }
        if (s != KVIST_OK) fail_msg("%s, talk %d: %s", r->family, r->talk, err.message);
        if (len != strlen(r->text) || memcmp(buf, r->text, len) != 0)
            fail_msg("%s, talk %d, answer %d:\n%s\ninstead of\n%s", r->family, r->talk, r->answer, buf, r->text);
    }
}

static void test_detection(void **state) {
    for (size_t i = 0; i < COUNT(templates); i++)
        assert_string_equal(kv_chat_detect(templates[i].jinja), templates[i].family);
    assert_null(kv_chat_detect(NULL));
    assert_null(kv_chat_detect(""));
    assert_null(kv_chat_detect("{% for m in messages %}{{ m.role + ': ' + m.content }}{% endfor %}"));
    assert_null(kv_chat_detect("<|im_start|>user<|im_sep|>"));          /* Phi-4 is not ChatML */
    assert_null(kv_chat_detect("<|im_start|>assistant\\n<think>\\n'")); /* a thinking model we do not know */
    assert_null(kv_chat_detect("<|start_header_id|>user<|end_header_id|>{{ x }}")); /* not Llama 3's own turn */
    assert_string_equal(
        kv_chat_detect("'<|im_start|>system\\n' + x <think> ns.last_query_index enable_thinking is false"), "qwen3");
    assert_string_equal(kv_chat_detect("[AVAILABLE_TOOLS] \"[INST] \" + x"), "mistral-v3");
    assert_string_equal(kv_chat_detect("[AVAILABLE_TOOLS] \"[INST]\" + x"), "mistral-v3-tekken");
    assert_string_equal(kv_chat_detect("'<|start_header_id|>' Cutting Knowledge Date | trim + '<|eot_id|>'"),
                        "llama3.1");
}

static void test_names(void **state) {
    for (size_t i = 0; i < COUNT(renderings); i++) {
        assert_true(kv_chat_known(renderings[i].family));
        assert_non_null(strstr(kv_chat_families(), renderings[i].family));
    }
    assert_false(kv_chat_known("nonsense"));
    assert_false(kv_chat_known(NULL));
    assert_false(kv_chat_known(""));
}

/* A ChatML template's own default system text is used, whatever it says; a conversation's own replaces it. */
static void test_default_system(void **state) {
    static const char jinja[] = "{% if x %}{{ '<|im_start|>system\\n' + y + '<|im_end|>' }}{% else %}"
                                "{{ '<|im_start|>system\\nYou are Ada.<|im_end|>\\n' }}{% endif %}";
    const kvist_message m[] = {{"system", "Sys"}, {"user", "Hi"}};
    char buf[256];
    size_t len;
    kv_error err = {0};
    assert_string_equal(kv_chat_detect(jinja), "chatml");
    assert_int_equal(kv_chat_format("chatml", jinja, NULL, NULL, m + 1, 1, false, buf, sizeof buf, &len, &err),
                     KVIST_OK);
    assert_string_equal(buf, "<|im_start|>system\nYou are Ada.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n");
    assert_int_equal(kv_chat_format("chatml", jinja, NULL, NULL, m, 2, false, buf, sizeof buf, &len, &err), KVIST_OK);
    assert_string_equal(buf, "<|im_start|>system\nSys<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n");
    assert_int_equal(kv_chat_format("chatml", NULL, NULL, NULL, m + 1, 1, false, buf, sizeof buf, &len, &err),
                     KVIST_OK);
    assert_string_equal(buf, "<|im_start|>user\nHi<|im_end|>\n");
}

static void test_buffer(void **state) {
    const kvist_message m[] = {{"user", "Hello"}};
    char whole[256], buf[256];
    size_t len, n;
    kv_error err = {0};
    assert_int_equal(kv_chat_format("zephyr", NULL, "", "</s>", m, 1, true, whole, sizeof whole, &len, &err), KVIST_OK);
    for (size_t cap = 0; cap <= len + 1; cap++) {
        memset(buf, 0x55, sizeof buf);
        assert_int_equal(kv_chat_format("zephyr", NULL, "", "</s>", m, 1, true, buf, cap, &n, &err), KVIST_OK);
        assert_int_equal(n, len);
        assert_memory_equal(buf, whole, cap < len ? cap : len);
        assert_int_equal(buf[cap], 0x55);
    }
    assert_int_equal(kv_chat_format("zephyr", NULL, "", "</s>", m, 1, true, NULL, 0, &n, &err), KVIST_OK);
    assert_int_equal(n, len);
}

static void test_refusals(void **state) {
    const kvist_message tool[] = {{"user", "a"}, {"tool", "b"}}, twice[] = {{"user", "a"}, {"user", "b"}},
                        null[] = {{"user", NULL}};
    char buf[256];
    size_t n;
    kv_error err = {0};
    assert_int_equal(kv_chat_format("nonsense", NULL, "", "", tool, 1, true, buf, sizeof buf, &n, &err),
                     KVIST_E_UNSUPPORTED);
    assert_non_null(strstr(err.message, "chatml"));
    assert_int_equal(kv_chat_format("qwen2", NULL, "", "", tool, 2, true, buf, sizeof buf, &n, &err),
                     KVIST_E_UNSUPPORTED);
    assert_non_null(strstr(err.message, "tool"));
    assert_int_equal(kv_chat_format("llama2", NULL, "", "", twice, 2, true, buf, sizeof buf, &n, &err), KVIST_E_ARG);
    assert_int_equal(kv_chat_format("chatml", NULL, "", "", null, 1, true, buf, sizeof buf, &n, &err), KVIST_E_ARG);
    assert_int_equal(kv_chat_format("chatml", NULL, "", "", NULL, 0, true, buf, sizeof buf, &n, &err), KVIST_OK);
    assert_int_equal(n, strlen("<|im_start|>assistant\n"));
}

/* The template in the model file itself. */
static void test_model_template(void **state) {
    const char *path = test_model(), *jinja;
    if (!path) skip();
    kv_gguf *g;
    kv_error err = {0};
    assert_int_equal(kv_gguf_open(path, &g, &err), KVIST_OK);
    assert_int_equal(kv_gguf_str(g, "tokenizer.chat_template", &jinja, NULL, &err), KVIST_OK);
    const char *family = kv_chat_detect(jinja);
    assert_non_null(family);
    if (strcmp(family, "smollm") == 0) assert_string_equal(jinja, jinja_of("smollm"));
    kv_gguf_close(&g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_renderings),     cmocka_unit_test(test_detection), cmocka_unit_test(test_names),
        cmocka_unit_test(test_default_system), cmocka_unit_test(test_buffer),    cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_model_template),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
