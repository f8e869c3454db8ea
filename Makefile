# SPDX-License-Identifier: Apache-2.0
# kvist: GNU make, no configure step.
#   make            the command line tool (build/kvist) and the library (build/libkvist.a)
#   make check      builds and runs all tests; ends with `N passed, N failed, N skipped`
#   make test T=text/test_bpe     one test program
#   make check-mutants            seeded faults: each must make a test fail
#   make demo       fetches a small model and reads a long document with several KV policies
#   make fidelity   what each method costs at equal true bytes (docs/fidelity.md): M=model.gguf
#   make bench      prompt and decode speed; make bench-kernels: each kernel by itself
#   make fuzz       the fuzzers (clang)
#   make install    PREFIX=/usr/local DESTDIR=
# Variables
#   SAN=address|undefined|thread|address,undefined   sanitizer build      CC=clang   other compiler
#   BUILD=dir       build folder                                          MODULES="base gguf"   only these folders of src/
#   CFLAGS=, LDFLAGS=    added last
comma   := ,
CC      ?= cc
BUILD   ?= build$(if $(SAN),-$(subst $(comma),-,$(SAN)))
PREFIX  ?= /usr/local
OPT     ?= -O3 -g
WARN    := -Wall -Wextra -Wshadow -Wpointer-arith -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wno-unused-parameter
VERSION := $(shell sed -n 's/^.define KVIST_VERSION "\(.*\)"/\1/p' include/kvist/kvist.h)
SOVERSION := 0

# ---------------------------------------------------------------- packages
# pkg-config names; the Debian package of each stands in debian_NAME.
PKGS      := libpcre2-8 libutf8proc jansson zlib
CLI_PKGS  := libedit
TEST_PKGS := cmocka
debian_libpcre2-8  := libpcre2-dev
debian_libutf8proc := libutf8proc-dev
debian_jansson     := libjansson-dev
debian_zlib        := zlib1g-dev
debian_libedit     := libedit-dev
debian_cmocka      := libcmocka-dev
GOALS := $(or $(MAKECMDGOALS),all)
ifneq ($(filter-out clean format format-check check-includes check-style uninstall,$(GOALS)),)
NEED := $(PKGS) $(CLI_PKGS) $(if $(filter check check-mutants test tests,$(GOALS)),$(TEST_PKGS))
ifeq ($(shell command -v pkg-config),)
$(error pkg-config is missing. Debian: apt-get install pkg-config   (or ./run demo, which installs what is needed))
endif
MISSING := $(shell for p in $(NEED); do pkg-config --exists $$p || echo $$p; done)
ifneq ($(MISSING),)
$(error missing: $(MISSING). Debian: apt-get install $(foreach p,$(MISSING),$(debian_$(p)))   (or ./run demo, which installs what is needed))
endif
endif
PKG_CFLAGS := $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
PKG_LIBS   := $(shell pkg-config --libs $(PKGS) 2>/dev/null)
CLI_LIBS   := $(shell pkg-config --libs $(CLI_PKGS) 2>/dev/null)
TEST_LIBS  := -lcmocka

# ---------------------------------------------------------------- flags
# -ffp-contract=off: the same C gives the same bits at every instruction set level.
# -fPIC: the same objects make the shared library; with hidden visibility it costs nothing on 64-bit machines.
# -fno-sanitize-recover: a finding ends the program, so that a test cannot pass over it.
CFLAGS   ?=
SANFLAGS := $(if $(SAN),-fsanitize=$(SAN) -fno-sanitize-recover=all -fno-omit-frame-pointer)
ALLFLAGS := -std=c11 -D_GNU_SOURCE $(OPT) $(WARN) -ffp-contract=off -fno-math-errno -fvisibility=hidden -fPIC -pthread -Iinclude -Isrc $(PKG_CFLAGS) $(SANFLAGS) $(CFLAGS)
LDLIBS   := $(PKG_LIBS) -lm -pthread
LDFLAGS  += $(SANFLAGS)

# ---------------------------------------------------------------- files
# MODULES restricts the library to some folders, for work on one part: make MODULES="base gguf text" test T=text/test_bpe
MODULES ?= base gguf text cache policy backend model engine measure
# Files of another architecture's levels are left out.
TARGET  := $(or $(shell $(CC) -dumpmachine 2>/dev/null),$(shell uname -m))
FOREIGN := $(if $(filter x86_64% amd64%,$(TARGET)),,%_avx2.c %_avxvnni.c %_avx512.c) $(if $(filter aarch64% arm64%,$(TARGET)),,%_neon.c)
LIB_SRC := $(filter-out $(FOREIGN),$(sort $(foreach m,$(MODULES),$(shell find src/$(m) -name '*.c' 2>/dev/null))))
CLI_SRC := $(sort $(wildcard src/cli/*.c))
CLI_HTML := $(sort $(wildcard src/cli/*.html)) # each becomes a C string: src/cli/chart.html is kv_cli_chart_page
TEST_SRC := $(sort $(wildcard tests/*/test_*.c))
TEST_SCRIPTS := $(sort $(wildcard tests/*/test_*.sh))
SUPPORT_SRC := $(sort $(wildcard tests/support/*.c))
FUZZ_SRC := $(sort $(wildcard fuzz/*.c))

obj = $(patsubst %.c,$(BUILD)/%.o,$(1))
LIB := $(BUILD)/libkvist.a
SONAME := libkvist.so.$(SOVERSION)
SHLIB := $(BUILD)/$(SONAME)
BIN := $(BUILD)/kvist
SUPPORT := $(BUILD)/libsupport.a
PAGES := $(patsubst src/cli/%.html,$(BUILD)/src/cli/%_page.o,$(CLI_HTML))
TESTS := $(patsubst tests/%.c,$(BUILD)/tests/%,$(TEST_SRC))

all: $(BIN)

# ---------------------------------------------------------------- rules
# Instruction set files carry their level in the name; everything else is plain.
AVX2   := -mavx2 -mfma -mf16c -mbmi2
AVX512 := $(AVX2) -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mprefer-vector-width=512
$(BUILD)/%_avx2.o: private ISA := $(AVX2)
$(BUILD)/%_avxvnni.o: private ISA := $(AVX2) -mavxvnni
$(BUILD)/%_avx512.o: private ISA := $(AVX512)
# 64-bit ARM: SDOT is optional in ARMv8.2 and asked for at run time (AT_HWCAP). gcc's scheduling before register allocation
# hoists loads until accumulators spill: 62 moves to and from memory beside the 96 SDOT of a block of six rows, against none.
NEON   := $(if $(filter aarch64% arm64%,$(TARGET)),-march=armv8.2-a+dotprod \
	$(if $(findstring clang,$(shell $(CC) --version 2>/dev/null)),,-fno-schedule-insns))
$(BUILD)/%_neon.o: private ISA := $(NEON)
$(BUILD)/tests/%.o: private ALLFLAGS += -Itests

# Two stamps, rewritten only when their text changes: other flags rebuild the objects, another list of objects the archive.
STAMP_FLAGS := $(CC) $(ALLFLAGS) | $(AVX2) | $(AVX512) | $(NEON)
STAMP_OBJS := $(LIB_SRC)
stamp = mkdir -p $(@D); printf '%s\n' '$(1)' | cmp -s - $@ || printf '%s\n' '$(1)' >$@
$(BUILD)/flags.stamp: FORCE
	@$(call stamp,$(STAMP_FLAGS))
$(BUILD)/objects.stamp: FORCE
	@$(call stamp,$(STAMP_OBJS))

# Quiet by default: one short line per file; V=1 shows the commands.
Q := $(if $(V),,@)
say = $(if $(V),,@echo '  $(1)	$(patsubst $(BUILD)/%,%,$@)')

$(BUILD)/%.o: %.c $(BUILD)/flags.stamp
	@mkdir -p $(@D)
	$(call say,CC)
	$(Q)$(CC) $(ALLFLAGS) $(ISA) -MMD -MP -c $< -o $@

$(PAGES:.o=.c): $(BUILD)/src/cli/%_page.c: src/cli/%.html scripts/embed
	@mkdir -p $(@D)
	$(call say,EMBED)
	$(Q)scripts/embed kv_cli_$*_page $< >$@
$(PAGES): %.o: %.c $(BUILD)/flags.stamp
	$(call say,CC)
	$(Q)$(CC) $(ALLFLAGS) -c $< -o $@

$(LIB): $(call obj,$(LIB_SRC)) $(BUILD)/objects.stamp
	$(call say,AR)
	$(Q)rm -f $@; $(AR) rcs $@ $(filter %.o,$^)

$(SHLIB): $(call obj,$(LIB_SRC)) $(BUILD)/objects.stamp
	$(call say,LD)
	$(Q)$(CC) $(LDFLAGS) -shared -Wl,-soname,$(SONAME) -o $@ $(filter %.o,$^) $(LDLIBS)

$(BIN): $(call obj,$(CLI_SRC)) $(PAGES) $(LIB)
	$(call say,LD)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS) $(CLI_LIBS)

# An archive, so that a test links only the helpers it uses (and a part of the library suffices).
$(SUPPORT): $(call obj,$(SUPPORT_SRC))
	$(call say,AR)
	$(Q)rm -f $@; $(AR) rcs $@ $^

$(BUILD)/tests/%: $(BUILD)/tests/%.o $(SUPPORT) $(LIB)
	$(call say,LD)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS) $(TEST_LIBS)

# ---------------------------------------------------------------- tests
tests: $(TESTS)

# One test binary: make test T=text/test_bpe
test: $(BUILD)/tests/$(T)
	$(Q)KVIST_BIN=$(BIN) $(BUILD)/tests/$(T)

# Laws first (they take no time), then the programs. Sanitized programs run slower: they get more time.
check: $(if $(CLI_SRC),$(BIN)) $(TESTS)
	@CC='$(CC)' OPT='$(OPT)' CFLAGS='$(CFLAGS)' BUILD='$(BUILD)' KVIST_BIN='$(BIN)' KVIST_TEST_PREFIX='$(BUILD)/tests/' \
	KVIST_TEST_TIMEOUT=$${KVIST_TEST_TIMEOUT:-$(if $(SAN),1200,300)} scripts/run-tests -o '$(BUILD)/test-logs' \
	scripts/check-includes scripts/check-style scripts/check-header $(if $(CLI_SRC),$(if $(SAN),,scripts/check-install)) \
	$(TEST_SCRIPTS) $(TESTS)

check-mutants: $(TESTS) $(if $(CLI_SRC),$(BIN))
	@CC='$(CC)' OPT='$(OPT)' CFLAGS='$(CFLAGS)' tests/mutants/run '$(BUILD)'

check-includes check-style:
	@scripts/$@

# ---------------------------------------------------------------- demo, bench
DOC := examples/kestrel-sound
DEMO_CTX := 8192
DEMO_KV := --kv full --kv minikv --kv kvcompress --kv auto --kv auto,share=0.07 --kv full,format=q2s --kv full,format=q4
demo: $(BIN)
	@model=$$(scripts/fetch-model) && \
	$(BIN) compare -m "$$model" -f $(DOC).txt --questions $(DOC).questions.tsv $(DEMO_KV) -c $(DEMO_CTX) $(DEMO_FLAGS)

BENCH_FLAGS ?= -p 512 -n 64 -d 0,2048,8192 --kv full --kv full,format=q2s --kv minikv --kv kvcompress -c 8768
bench: $(BIN)
	@model=$$(scripts/fetch-model) && KVIST_COMMIT=$$(git describe --always --dirty 2>/dev/null) $(BIN) bench -m "$$model" $(BENCH_FLAGS)

# KERNEL_FLAGS='--filter decode/q2s', --level avx2, -r 31, -o csv, --list
bench-kernels: $(BIN)
	@KVIST_COMMIT=$$(git describe --always --dirty 2>/dev/null) $(BIN) bench --kernels $(KERNEL_FLAGS)

# The tables of docs/fidelity.md: make fidelity M=model.gguf [DATA=../shared/data] [OUT=fidelity] [PARTS="known agnostic formats"]
fidelity: $(BIN)
	@scripts/fidelity -k '$(BIN)' $(if $(M),-m '$(M)') $(if $(DATA),-d '$(DATA)') $(if $(OUT),-o '$(OUT)') $(PARTS)

# ---------------------------------------------------------------- fuzz
# make fuzz builds; build-fuzz/NAME CORPUS -max_total_time=60 runs one.
FUZZ_BUILD := build-fuzz
FUZZ_CC ?= clang
fuzz:
	@command -v $(FUZZ_CC) >/dev/null || { echo 'make fuzz needs clang (Debian: apt-get install clang)'; exit 1; }
	@$(MAKE) --no-print-directory BUILD=$(FUZZ_BUILD) CC=$(FUZZ_CC) OPT='-O1 -g' CFLAGS='-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all' \
		LDFLAGS='-fsanitize=fuzzer,address,undefined' fuzzers
FUZZERS := $(patsubst fuzz/%.c,$(BUILD)/%,$(FUZZ_SRC))
fuzzers: $(FUZZERS)
	@echo 'fuzzers: $(if $(FUZZERS),$(FUZZERS),there are none yet)'
$(FUZZERS): $(BUILD)/%: $(BUILD)/fuzz/%.o $(LIB)
	$(call say,LD)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS)

# ---------------------------------------------------------------- install
BINDIR := $(DESTDIR)$(PREFIX)/bin
LIBDIR := $(DESTDIR)$(PREFIX)/lib
INCDIR := $(DESTDIR)$(PREFIX)/include/kvist
MANDIR := $(DESTDIR)$(PREFIX)/share/man/man1
MANPAGE := $(firstword $(wildcard docs/kvist.1 docs/man/kvist.1))
install: $(BIN) $(LIB) $(SHLIB)
	install -d '$(BINDIR)' '$(LIBDIR)/pkgconfig' '$(INCDIR)' '$(MANDIR)'
	install -m 755 $(BIN) '$(BINDIR)/kvist'
	install -m 644 $(LIB) '$(LIBDIR)/libkvist.a'
	install -m 755 $(SHLIB) '$(LIBDIR)/$(SONAME)'
	ln -sf $(SONAME) '$(LIBDIR)/libkvist.so'
	install -m 644 include/kvist/kvist.h '$(INCDIR)/kvist.h'
	sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@VERSION@|$(VERSION)|' -e 's|@PKGS@|$(PKGS)|' kvist.pc.in >'$(LIBDIR)/pkgconfig/kvist.pc'
	$(if $(MANPAGE),install -m 644 $(MANPAGE) '$(MANDIR)/kvist.1')

uninstall:
	rm -f '$(BINDIR)/kvist' '$(LIBDIR)/libkvist.a' '$(LIBDIR)/libkvist.so' '$(LIBDIR)/$(SONAME)' '$(LIBDIR)/pkgconfig/kvist.pc' \
		'$(INCDIR)/kvist.h' '$(MANDIR)/kvist.1'
	-rmdir '$(INCDIR)' 2>/dev/null

# ---------------------------------------------------------------- the rest
FORMAT_SRC = $(shell find src include tests bench fuzz examples -name '*.[ch]' 2>/dev/null)
format-check:
	@if command -v clang-format >/dev/null; then clang-format --dry-run --Werror $(FORMAT_SRC); \
	else echo 'format-check: clang-format is not installed; nothing checked'; fi

clean:
	rm -rf build build-*

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
FORCE:
.PHONY: all tests test clean fidelity check check-mutants check-includes check-style demo bench bench-kernels fuzz fuzzers install uninstall \
	format-check FORCE
.SECONDARY:
.DELETE_ON_ERROR:
