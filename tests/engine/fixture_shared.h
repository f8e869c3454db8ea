/* SPDX-License-Identifier: Apache-2.0 */
/* One generated model and one text for all cases of a test program, which defines TEXT_SEED before it includes this. */
#ifndef KV_TESTS_ENGINE_FIXTURE_SHARED_H
#define KV_TESTS_ENGINE_FIXTURE_SHARED_H

#include "engine/fixture.h"

static fixture fx;
static int32_t ids[2048];

static int setup(void **state) {
    gen_spec g = fixture_spec();
    fixture_open(&fx, &g);
    fixture_ids(ids, sizeof ids / sizeof *ids, TEXT_SEED);
    return 0;
}

static int teardown(void **state) {
    fixture_close(&fx);
    return 0;
}

#endif
