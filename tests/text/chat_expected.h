/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What Jinja2 3.1 (trim_blocks, lstrip_blocks, as model hubs render) makes of the models' own templates with
 * bos_token "<s>" and eos_token "</s>"; NULL where the template raises an exception. templates: those short enough.
 */
#ifndef KV_TESTS_TEXT_CHAT_EXPECTED_H
#define KV_TESTS_TEXT_CHAT_EXPECTED_H

static const kvist_message talk0[] = {{"user", " Hello\n"}};
static const kvist_message talk1[] = {{"system", " Be brief. "},
                                      {"user", "Hi \xc2"
                                               "\xa0"
                                               ""}};
static const kvist_message talk2[] = {{"system", "Be brief."},
                                      {"user", "  Who?"},
                                      {"assistant", "  <think>\nhm\n</think>\n\nMe. \n"},
                                      {"user", "Why?\t"}};
static const kvist_message talk3[] = {{"user", "Who?"}, {"assistant", "<think>\n\nhm\n\n</think>\n\nMe. "}};
static const struct talk {
    const kvist_message *m;
    size_t n;
} talks[] = {{talk0, 1}, {talk1, 2}, {talk2, 4}, {talk3, 2}};

static const struct template_text {
    const char *family, *jinja;
} templates[] = {
    {"chatml", "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im"
               "_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif "
               "%}"},
    {"smollm", "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>"
               "system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif"
               " %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %"
               "}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"},
    {"llama2", "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message "
               "= messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false"
               " %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % "
               "2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') "
               "}}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + sy"
               "stem_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['conten"
               "t'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/"
               "INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% e"
               "ndif %}{% endfor %}"},
    {"llama3", "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header"
               "_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if"
               " loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if"
               " add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"},
    {"mistral", "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 =="
                " 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{%"
                " endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif "
                "message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% else %}{{ raise_exception('On"
                "ly user and assistant roles are supported!') }}{% endif %}{% endfor %}"},
    {"mistral-v1",
     "{%- if messages[0]['role'] == 'system' %}\n    {%- set system_message = messages[0]['content'] %}\n "
     "   {%- set loop_messages = messages[1:] %}\n{%- else %}\n    {%- set loop_messages = messages %}\n{%"
     "- endif %}\n\n{{- bos_token }}\n{%- for message in loop_messages %}\n    {%- if (message['role'] == "
     "'user') != (loop.index0 % 2 == 0) %}\n        {{- raise_exception('After the optional system message"
     ", conversation roles must alternate user/assistant/user/assistant/...') }}\n    {%- endif %}\n    {%"
     "- if message['role'] == 'user' %}\n        {%- if loop.first and system_message is defined %}\n     "
     "       {{- ' [INST] ' + system_message + '\\n\\n' + message['content'] + ' [/INST]' }}\n        {%- "
     "else %}\n            {{- ' [INST] ' + message['content'] + ' [/INST]' }}\n        {%- endif %}\n    "
     "{%- elif message['role'] == 'assistant' %}\n        {{- ' ' + message['content'] + eos_token}}\n    "
     "{%- else %}\n        {{- raise_exception('Only user and assistant roles are supported, with the exce"
     "ption of an initial optional system message!') }}\n    {%- endif %}\n{%- endfor %}\n"},
    {"mistral-v7",
     "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message"
     "['content'] + '[/INST]' }}{% elif message['role'] == 'system' %}{{ '[SYSTEM_PROMPT] ' + message['con"
     "tent'] + '[/SYSTEM_PROMPT]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] +"
     " eos_token }}{% else %}{{ raise_exception('Only user, system and assistant roles are supported!') }}"
     "{% endif %}{% endfor %}"},
    {"zephyr", "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\\n' + message['conte"
               "nt'] + eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\\n' + message['content']"
               " + eos_token }}\n{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\\n'  + message['conten"
               "t'] + eos_token }}\n{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}"
               "\n{% endif %}\n{% endfor %}"},
    {"gemma", "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported"
              "') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 ="
              "= 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{"
              "% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = m"
              "essage['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_o"
              "f_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"},
    {"gemma3", "{{ bos_token }}\n{%- if messages[0]['role'] == 'system' -%}\n    {%- if messages[0]['content'] is st"
               "ring -%}\n        {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}\n    {%- else -%}\n"
               "        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' -%}\n    {%- endif -%"
               "}\n    {%- set loop_messages = messages[1:] -%}\n{%- else -%}\n    {%- set first_user_prefix = \"\" "
               "-%}\n    {%- set loop_messages = messages -%}\n{%- endif -%}\n{%- for message in loop_messages -%}\n"
               "    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}\n        {{ raise_exception(\"C"
               "onversation roles must alternate user/assistant/user/assistant/...\") }}\n    {%- endif -%}\n    {%-"
               " if (message['role'] == 'assistant') -%}\n        {%- set role = \"model\" -%}\n    {%- else -%}\n  "
               "      {%- set role = message['role'] -%}\n    {%- endif -%}\n    {{ '<start_of_turn>' + role + '\n' "
               "+ (first_user_prefix if loop.first else \"\") }}\n    {%- if message['content'] is string -%}\n     "
               "   {{ message['content'] | trim }}\n    {%- endif -%}\n    {{ '<end_of_turn>\n' }}\n{%- endfor -%}\n"
               "{%- if add_generation_prompt -%}\n    {{'<start_of_turn>model\n'}}\n{%- endif -%}\n"},
    {"phi3", "{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{'<|system|"
             ">\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + messag"
             "e['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['"
             "content'] + '<|end|>\n'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }"
             "}{% else %}{{ eos_token }}{% endif %}"},
};

static const struct rendering {
    const char *family;
    int talk;
    bool answer;
    const char *text;
} renderings[] = {
    {"chatml", 0, true, "<|im_start|>user\n Hello\n<|im_end|>\n<|im_start|>assistant\n"},
    {"chatml", 1, true,
     "<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\nHi \xc2"
     "\xa0"
     "<|im_end|>\n<|im_start|>"
     "assistant\n"},
    {"chatml", 2, true,
     "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n  Who?<|im_end|>\n<|im_start|>assistant\n"
     "  <think>\nhm\n</think>\n\nMe. \n<|im_end|>\n<|im_start|>user\nWhy?\t<|im_end|>\n<|im_start|>assista"
     "nt\n"},
    {"chatml", 2, false,
     "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n  Who?<|im_end|>\n<|im_start|>assistant\n"
     "  <think>\nhm\n</think>\n\nMe. \n<|im_end|>\n<|im_start|>user\nWhy?\t<|im_end|>\n"},
    {"chatml", 3, true,
     "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n<think>\n\nhm\n\n</think>\n\nMe. <|im_end|>"
     "\n<|im_start|>assistant\n"},
    {"chatml", 3, false,
     "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n<think>\n\nhm\n\n</think>\n\nMe. <|im_end|>"
     "\n"},
    {"smollm", 0, true,
     "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
     "<|im_start|>user\n Hello\n<|im_end|>\n<|im_start|>assistant\n"},
    {"smollm", 1, true,
     "<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\nHi \xc2"
     "\xa0"
     "<|im_end|>\n<|im_start|>"
     "assistant\n"},
    {"smollm", 2, true,
     "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n  Who?<|im_end|>\n<|im_start|>assistant\n"
     "  <think>\nhm\n</think>\n\nMe. \n<|im_end|>\n<|im_start|>user\nWhy?\t<|im_end|>\n<|im_start|>assista"
     "nt\n"},
    {"smollm", 2, false,
     "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n  Who?<|im_end|>\n<|im_start|>assistant\n"
     "  <think>\nhm\n</think>\n\nMe. \n<|im_end|>\n<|im_start|>user\nWhy?\t<|im_end|>\n"},
    {"smollm", 3, true,
     "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
     "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n<think>\n\nhm\n\n</think>\n\nMe. <|im_end|>"
     "\n<|im_start|>assistant\n"},
    {"smollm", 3, false,
     "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
     "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n<think>\n\nhm\n\n</think>\n\nMe. <|im_end|>"
     "\n"},
    {"qwen2", 0, true,
     "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
     "<|im_start|>user\n Hello\n<|im_end|>\n<|im_start|>assistant\n"},
    {"qwen2", 1, true,
     "<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\nHi \xc2"
     "\xa0"
     "<|im_end|>\n<|im_start|>"
     "assistant\n"},
    {"qwen2", 2, true,
     "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n  Who?<|im_end|>\n<|im_start|>assistant\n"
     "  <think>\nhm\n</think>\n\nMe. \n<|im_end|>\n<|im_start|>user\nWhy?\t<|im_end|>\n<|im_start|>assista"
     "nt\n"},
    {"qwen2", 2, false,
     "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n  Who?<|im_end|>\n<|im_start|>assistant\n"
     "  <think>\nhm\n</think>\n\nMe. \n<|im_end|>\n<|im_start|>user\nWhy?\t<|im_end|>\n"},
    {"qwen2", 3, true,
     "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
     "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n<think>\n\nhm\n\n</think>\n\nMe. <|im_end|>"
     "\n<|im_start|>assistant\n"},
    {"qwen2", 3, false,
     "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
     "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n<think>\n\nhm\n\n</think>\n\nMe. <|im_end|>"
     "\n"},
    {"qwen3", 0, true, "<|im_start|>user\n Hello\n<|im_end|>\n<|im_start|>assistant\n"},
    {"qwen3", 1, true,
     "<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\nHi \xc2"
     "\xa0"
     "<|im_end|>\n<|im_start|>"
     "assistant\n"},
    {"qwen3", 2, true,
     "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n  Who?<|im_end|>\n<|im_start|>assistant\n"
     "Me. \n<|im_end|>\n<|im_start|>user\nWhy?\t<|im_end|>\n<|im_start|>assistant\n"},
    {"qwen3", 2, false,
     "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n  Who?<|im_end|>\n<|im_start|>assistant\n"
     "Me. \n<|im_end|>\n<|im_start|>user\nWhy?\t<|im_end|>\n"},
    {"qwen3", 3, true,
     "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n<think>\nhm\n</think>\n\nMe. <|im_end|>\n<|"
     "im_start|>assistant\n"},
    {"qwen3", 3, false,
     "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n<think>\nhm\n</think>\n\nMe. <|im_end|>\n"},
    {"llama3", 0, true,
     "<s><|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|><|start_header_id|>assistant<|end_head"
     "er_id|>\n\n"},
    {"llama3", 1, true,
     "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_hea"
     "der_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"},
    {"llama3", 2, true,
     "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_hea"
     "der_id|>\n\nWho?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n<think>\nhm\n</think>\n\n"
     "Me.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|><|start_header_id|>assistant<"
     "|end_header_id|>\n\n"},
    {"llama3", 2, false,
     "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_hea"
     "der_id|>\n\nWho?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n<think>\nhm\n</think>\n\n"
     "Me.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"},
    {"llama3", 3, true,
     "<s><|start_header_id|>user<|end_header_id|>\n\nWho?<|eot_id|><|start_header_id|>assistant<|end_heade"
     "r_id|>\n\n<think>\n\nhm\n\n</think>\n\nMe.<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"},
    {"llama3", 3, false,
     "<s><|start_header_id|>user<|end_header_id|>\n\nWho?<|eot_id|><|start_header_id|>assistant<|end_heade"
     "r_id|>\n\n<think>\n\nhm\n\n</think>\n\nMe.<|eot_id|>"},
    {"llama3.1", 0, true,
     "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: "
     "26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|><|start_header_i"
     "d|>assistant<|end_header_id|>\n\n"},
    {"llama3.1", 1, true,
     "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: "
     "26 Jul 2024\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_he"
     "ader_id|>assistant<|end_header_id|>\n\n"},
    {"llama3.1", 2, true,
     "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: "
     "26 Jul 2024\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWho?<|eot_id|><|start_"
     "header_id|>assistant<|end_header_id|>\n\n<think>\nhm\n</think>\n\nMe.<|eot_id|><|start_header_id|>us"
     "er<|end_header_id|>\n\nWhy?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"},
    {"llama3.1", 2, false,
     "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: "
     "26 Jul 2024\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWho?<|eot_id|><|start_"
     "header_id|>assistant<|end_header_id|>\n\n<think>\nhm\n</think>\n\nMe.<|eot_id|><|start_header_id|>us"
     "er<|end_header_id|>\n\nWhy?<|eot_id|>"},
    {"llama3.1", 3, true,
     "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: "
     "26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWho?<|eot_id|><|start_header_id"
     "|>assistant<|end_header_id|>\n\n<think>\n\nhm\n\n</think>\n\nMe.<|eot_id|><|start_header_id|>assista"
     "nt<|end_header_id|>\n\n"},
    {"llama3.1", 3, false,
     "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: "
     "26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWho?<|eot_id|><|start_header_id"
     "|>assistant<|end_header_id|>\n\n<think>\n\nhm\n\n</think>\n\nMe.<|eot_id|>"},
    {"mistral", 0, true, "<s>[INST]  Hello\n [/INST]"},
    {"mistral", 1, true, NULL},
    {"mistral", 2, true, NULL},
    {"mistral", 2, false, NULL},
    {"mistral", 3, true, "<s>[INST] Who? [/INST]<think>\n\nhm\n\n</think>\n\nMe. </s>"},
    {"mistral", 3, false, "<s>[INST] Who? [/INST]<think>\n\nhm\n\n</think>\n\nMe. </s>"},
    {"mistral-v1", 0, true, "<s> [INST]  Hello\n [/INST]"},
    {"mistral-v1", 1, true,
     "<s> [INST]  Be brief. \n\nHi \xc2"
     "\xa0"
     " [/INST]"},
    {"mistral-v1", 2, true,
     "<s> [INST] Be brief.\n\n  Who? [/INST]   <think>\nhm\n</think>\n\nMe. \n</s> [INST] Why?\t [/INST]"},
    {"mistral-v1", 2, false,
     "<s> [INST] Be brief.\n\n  Who? [/INST]   <think>\nhm\n</think>\n\nMe. \n</s> [INST] Why?\t [/INST]"},
    {"mistral-v1", 3, true, "<s> [INST] Who? [/INST] <think>\n\nhm\n\n</think>\n\nMe. </s>"},
    {"mistral-v1", 3, false, "<s> [INST] Who? [/INST] <think>\n\nhm\n\n</think>\n\nMe. </s>"},
    {"mistral-v3", 0, true, "<s>[INST]  Hello\n[/INST]"},
    {"mistral-v3", 1, true,
     "<s>[INST]  Be brief. \n\nHi \xc2"
     "\xa0"
     "[/INST]"},
    {"mistral-v3", 2, true,
     "<s>[INST]   Who?[/INST] <think>\nhm\n</think>\n\nMe.</s>[INST] Be brief.\n\nWhy?\t[/INST]"},
    {"mistral-v3", 2, false,
     "<s>[INST]   Who?[/INST] <think>\nhm\n</think>\n\nMe.</s>[INST] Be brief.\n\nWhy?\t[/INST]"},
    {"mistral-v3", 3, true, "<s>[INST] Who?[/INST] <think>\n\nhm\n\n</think>\n\nMe.</s>"},
    {"mistral-v3", 3, false, "<s>[INST] Who?[/INST] <think>\n\nhm\n\n</think>\n\nMe.</s>"},
    {"mistral-v3-tekken", 0, true, "<s>[INST] Hello\n[/INST]"},
    {"mistral-v3-tekken", 1, true,
     "<s>[INST] Be brief. \n\nHi \xc2"
     "\xa0"
     "[/INST]"},
    {"mistral-v3-tekken", 2, true,
     "<s>[INST]  Who?[/INST]  <think>\nhm\n</think>\n\nMe. \n</s>[INST]Be brief.\n\nWhy?\t[/INST]"},
    {"mistral-v3-tekken", 2, false,
     "<s>[INST]  Who?[/INST]  <think>\nhm\n</think>\n\nMe. \n</s>[INST]Be brief.\n\nWhy?\t[/INST]"},
    {"mistral-v3-tekken", 3, true, "<s>[INST]Who?[/INST]<think>\n\nhm\n\n</think>\n\nMe. </s>"},
    {"mistral-v3-tekken", 3, false, "<s>[INST]Who?[/INST]<think>\n\nhm\n\n</think>\n\nMe. </s>"},
    {"mistral-v7", 0, true, "<s>[INST]  Hello\n[/INST]"},
    {"mistral-v7", 1, true,
     "<s>[SYSTEM_PROMPT]  Be brief. [/SYSTEM_PROMPT][INST] Hi \xc2"
     "\xa0"
     "[/INST]"},
    {"mistral-v7", 2, true,
     "<s>[SYSTEM_PROMPT] Be brief.[/SYSTEM_PROMPT][INST]   Who?[/INST]   <think>\nhm\n</think>\n\nMe. \n</"
     "s>[INST] Why?\t[/INST]"},
    {"mistral-v7", 2, false,
     "<s>[SYSTEM_PROMPT] Be brief.[/SYSTEM_PROMPT][INST]   Who?[/INST]   <think>\nhm\n</think>\n\nMe. \n</"
     "s>[INST] Why?\t[/INST]"},
    {"mistral-v7", 3, true, "<s>[INST] Who?[/INST] <think>\n\nhm\n\n</think>\n\nMe. </s>"},
    {"mistral-v7", 3, false, "<s>[INST] Who?[/INST] <think>\n\nhm\n\n</think>\n\nMe. </s>"},
    {"gemma", 0, true, "<s><start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\n"},
    {"gemma", 1, true, NULL},
    {"gemma", 2, true, NULL},
    {"gemma", 2, false, NULL},
    {"gemma", 3, true,
     "<s><start_of_turn>user\nWho?<end_of_turn>\n<start_of_turn>model\n<think>\n\nhm\n\n</think>\n\nMe.<en"
     "d_of_turn>\n<start_of_turn>model\n"},
    {"gemma", 3, false,
     "<s><start_of_turn>user\nWho?<end_of_turn>\n<start_of_turn>model\n<think>\n\nhm\n\n</think>\n\nMe.<en"
     "d_of_turn>\n"},
    {"phi3", 0, true, "<|user|>\n Hello\n<|end|>\n<|assistant|>\n"},
    {"phi3", 1, true,
     "<|system|>\n Be brief. <|end|>\n<|user|>\nHi \xc2"
     "\xa0"
     "<|end|>\n<|assistant|>\n"},
    {"phi3", 2, true,
     "<|system|>\nBe brief.<|end|>\n<|user|>\n  Who?<|end|>\n<|assistant|>\n  <think>\nhm\n</think>\n\nMe."
     " \n<|end|>\n<|user|>\nWhy?\t<|end|>\n<|assistant|>\n"},
    {"phi3", 2, false,
     "<|system|>\nBe brief.<|end|>\n<|user|>\n  Who?<|end|>\n<|assistant|>\n  <think>\nhm\n</think>\n\nMe."
     " \n<|end|>\n<|user|>\nWhy?\t<|end|>\n</s>"},
    {"phi3", 3, true,
     "<|user|>\nWho?<|end|>\n<|assistant|>\n<think>\n\nhm\n\n</think>\n\nMe. <|end|>\n<|assistant|>\n"},
    {"phi3", 3, false, "<|user|>\nWho?<|end|>\n<|assistant|>\n<think>\n\nhm\n\n</think>\n\nMe. <|end|>\n</s>"},
    {"zephyr", 0, true, "<|user|>\n Hello\n</s>\n<|assistant|>\n"},
    {"zephyr", 1, true,
     "<|system|>\n Be brief. </s>\n<|user|>\nHi \xc2"
     "\xa0"
     "</s>\n<|assistant|>\n"},
    {"zephyr", 2, true,
     "<|system|>\nBe brief.</s>\n<|user|>\n  Who?</s>\n<|assistant|>\n  <think>\nhm\n</think>\n\nMe. \n</s"
     ">\n<|user|>\nWhy?\t</s>\n<|assistant|>\n"},
    {"zephyr", 2, false,
     "<|system|>\nBe brief.</s>\n<|user|>\n  Who?</s>\n<|assistant|>\n  <think>\nhm\n</think>\n\nMe. \n</s"
     ">\n<|user|>\nWhy?\t</s>\n"},
    {"zephyr", 3, true, "<|user|>\nWho?</s>\n<|assistant|>\n<think>\n\nhm\n\n</think>\n\nMe. </s>\n<|assistant|>\n"},
    {"zephyr", 3, false, "<|user|>\nWho?</s>\n<|assistant|>\n<think>\n\nhm\n\n</think>\n\nMe. </s>\n"},
    {"llama2", 0, true, "<s>[INST] Hello [/INST]"},
    {"llama2", 1, true, "<s>[INST] <<SYS>>\n Be brief. \n<</SYS>>\n\nHi [/INST]"},
    {"llama2", 2, true,
     "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n  Who? [/INST] <think>\nhm\n</think>\n\nMe. </s><s>[INST] "
     "Why? [/INST]"},
    {"llama2", 2, false,
     "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n  Who? [/INST] <think>\nhm\n</think>\n\nMe. </s><s>[INST] "
     "Why? [/INST]"},
    {"llama2", 3, true, "<s>[INST] Who? [/INST] <think>\n\nhm\n\n</think>\n\nMe. </s>"},
    {"llama2", 3, false, "<s>[INST] Who? [/INST] <think>\n\nhm\n\n</think>\n\nMe. </s>"},
    {"gemma3", 0, true, "<s><start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\n"},
    {"gemma3", 1, true, "<s><start_of_turn>user\n Be brief. \n\nHi<end_of_turn>\n<start_of_turn>model\n"},
    {"gemma3", 2, true,
     "<s><start_of_turn>user\nBe brief.\n\nWho?<end_of_turn>\n<start_of_turn>model\n<think>\nhm\n</think>\n"
     "\nMe.<end_of_turn>\n<start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n"},
    {"gemma3", 2, false,
     "<s><start_of_turn>user\nBe brief.\n\nWho?<end_of_turn>\n<start_of_turn>model\n<think>\nhm\n</think>\n"
     "\nMe.<end_of_turn>\n<start_of_turn>user\nWhy?<end_of_turn>\n"},
    {"gemma3", 3, true,
     "<s><start_of_turn>user\nWho?<end_of_turn>\n<start_of_turn>model\n<think>\n\nhm\n\n</think>\n\nMe.<en"
     "d_of_turn>\n<start_of_turn>model\n"},
    {"gemma3", 3, false,
     "<s><start_of_turn>user\nWho?<end_of_turn>\n<start_of_turn>model\n<think>\n\nhm\n\n</think>\n\nMe.<en"
     "d_of_turn>\n"},
};

#endif
