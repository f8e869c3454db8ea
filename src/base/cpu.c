/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Instruction set levels: what CPUID reports *and* the operating system saves (XGETBV). A processor with AVX-512 under
 * a kernel that does not save its registers is an AVX2 (or plain) processor. On ARM the kernel's word (AT_HWCAP) is both.
 * Keeps no state: ask once, keep the answer.
 */
#include "base/cpu.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>

/* XCR0 bits (Intel SDM vol. 1, 13.3): 1 SSE, 2 AVX; 5 opmask, 6 upper halves of ZMM0-15, 7 ZMM16-31. */
#define XCR0_AVX 0x06u
#define XCR0_AVX512 0xe6u

static uint32_t xcr0(void) {
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    (void)hi;
    return lo;
}

static bool all(uint32_t reg, uint32_t bits) { return (reg & bits) == bits; }

static int hardware_level(void) {
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return KV_CPU_REF;
    /* FMA 12, OSXSAVE 27, AVX 28, F16C 29. Without OSXSAVE the xgetbv instruction itself is invalid. */
    if (!all(c, 1u << 12 | 1u << 27 | 1u << 28 | 1u << 29)) return KV_CPU_REF;
    uint32_t saved = xcr0();
    if (!all(saved, XCR0_AVX) || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return KV_CPU_REF;
    if (!all(b, 1u << 5 | 1u << 8)) return KV_CPU_REF; /* AVX2, BMI2 */
    /* EBX: F 16, DQ 17, BW 30, VL 31; ECX: VNNI 11. */
    if (!all(saved, XCR0_AVX512) || !all(b, 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31) || !all(c, 1u << 11))
        return KV_CPU_AVX2;
    return KV_CPU_AVX512;
}

/* ECX: VBMI 1, GFNI 8. */
static bool hardware_vbmi_gfni(void) {
    uint32_t a, b, c, d;
    return hardware_level() == KV_CPU_AVX512 && __get_cpuid_count(7, 0, &a, &b, &c, &d) && all(c, 1u << 1 | 1u << 8);
}

/* Leaf 7, subleaf 1, EAX: AVX512_BF16 5. Its registers are those XCR0 was asked about. */
static bool hardware_bf16(void) {
    uint32_t a, b, c, d;
    return hardware_level() == KV_CPU_AVX512 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && all(a, 1u << 5);
}

/* Leaf 7, subleaf 1, EAX: AVX-VNNI 4, on the AVX registers. */
static bool hardware_avxvnni(void) {
    uint32_t a, b, c, d;
    return hardware_level() >= KV_CPU_AVX2 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && all(a, 1u << 4);
}

static void brand(char out[49]) {
    uint32_t r[12];
    for (uint32_t i = 0; i < 3; i++)
        if (!__get_cpuid(0x80000002u + i, &r[4 * i], &r[4 * i + 1], &r[4 * i + 2], &r[4 * i + 3]))
            memset(&r[4 * i], 0, 16);
    memcpy(out, r, 48);
    out[48] = 0;
}
#else
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
/* AT_HWCAP bits of 64-bit ARM (Linux, arch/arm64, uapi/asm/hwcap.h): SDOT and UDOT, which imply Advanced SIMD here. */
#define HWCAP_ARM_ASIMD (1ul << 1)
#define HWCAP_ARM_ASIMDDP (1ul << 20)
static int hardware_level(void) {
    const unsigned long want = HWCAP_ARM_ASIMD | HWCAP_ARM_ASIMDDP;
    return (getauxval(AT_HWCAP) & want) == want ? KV_CPU_NEON : KV_CPU_REF;
}
#elif defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
static int hardware_level(void) { return KV_CPU_NEON; } /* what the compiler assumes of every machine it builds for */
#else
static int hardware_level(void) { return KV_CPU_REF; }
#endif
static bool hardware_vbmi_gfni(void) { return false; }
static bool hardware_bf16(void) { return false; }
static bool hardware_avxvnni(void) { return false; }
static void brand(char out[49]) { out[0] = 0; }
#endif

const char *kv_cpu_level_name(int level) {
#if defined(__aarch64__)
    static const char *const names[KV_CPU_LEVELS] = {"ref", "neon"};
#else
    static const char *const names[KV_CPU_LEVELS] = {"ref", "avx2", "avx512"};
#endif
    return level >= 0 && level < KV_CPU_LEVELS ? names[level] : "?";
}

int kv_cpu_detect(void) {
    int level = hardware_level();
    const char *mask = getenv("KVIST_CPU");
    if (mask)
        for (int i = 0; i < level; i++)
            if (!strcmp(mask, kv_cpu_level_name(i))) return i;
    return level;
}

/* A level that KVIST_CPU names is that level alone. */
static bool level_named(void) {
    const char *mask = getenv("KVIST_CPU");
    if (mask)
        for (int i = 0; i < KV_CPU_LEVELS; i++)
            if (!strcmp(mask, kv_cpu_level_name(i))) return true;
    return false;
}

bool kv_cpu_has_vbmi_gfni(void) { return !level_named() && hardware_vbmi_gfni(); }
bool kv_cpu_has_avxvnni(void) { return !level_named() && hardware_avxvnni(); }
bool kv_cpu_has_bf16(void) { return !level_named() && hardware_bf16(); }

void kv_cpu_name(char *buf, int cap) {
    if (cap <= 0) return;
    char text[49];
    brand(text);
    const char *s = text;
    while (*s == ' ') s++; /* some processors pad on the left */
    size_t n = strlen(s);
    while (n && s[n - 1] == ' ') n--;
    snprintf(buf, (size_t)cap, "%.*s", n ? (int)n : 7, n ? s : "unknown");
}
