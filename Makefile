# kvist: GNU make, no configure step.   make | make check | make demo | make bench | make install
#   SAN=address|undefined|thread   sanitizer build      CC=clang   other compiler     BUILD=dir   build folder
CC      ?= cc
BUILD   ?= build$(if $(SAN),-$(SAN))
PREFIX  ?= /usr/local
OPT     ?= -O3 -g
WARN    := -Wall -Wextra -Wshadow -Wpointer-arith -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wno-unused-parameter
PKGS    := libpcre2-8 libutf8proc jansson
PKG_CFLAGS := $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
PKG_LIBS   := $(shell pkg-config --libs $(PKGS) 2>/dev/null)
# -ffp-contract=off: the same C gives the same bits at every instruction set level.
CFLAGS  ?=
ALLFLAGS := -std=c11 -D_GNU_SOURCE $(OPT) $(WARN) -ffp-contract=off -fno-math-errno -fvisibility=hidden -pthread -Iinclude -Isrc $(PKG_CFLAGS) $(if $(SAN),-fsanitize=$(SAN) -fno-omit-frame-pointer) $(CFLAGS)
LDLIBS  := $(PKG_LIBS) -lm -pthread
LDFLAGS += $(if $(SAN),-fsanitize=$(SAN))

# MODULES restricts the library to some folders, for work on one part: make MODULES="base gguf text" test T=text/test_bpe
MODULES ?= base gguf text cache policy backend model engine measure
LIB_SRC := $(sort $(foreach m,$(MODULES),$(shell find src/$(m) -name '*.c' 2>/dev/null)))
CLI_SRC := $(sort $(wildcard src/cli/*.c))
TEST_SRC := $(sort $(wildcard tests/*/test_*.c))
SUPPORT_SRC := $(sort $(wildcard tests/support/*.c))

obj = $(patsubst %.c,$(BUILD)/%.o,$(1))
LIB := $(BUILD)/libkvist.a
BIN := $(BUILD)/kvist
TESTS := $(patsubst tests/%.c,$(BUILD)/tests/%,$(TEST_SRC))

all: $(BIN)

# Instruction set files carry their level in the name; everything else is plain.
AVX2   := -mavx2 -mfma -mf16c -mbmi2
AVX512 := $(AVX2) -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mprefer-vector-width=512
$(BUILD)/%_avx2.o: ISA := $(AVX2)
$(BUILD)/%_avx512.o: ISA := $(AVX512)

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(ALLFLAGS) $(ISA) -MMD -MP -c $< -o $@

$(LIB): $(call obj,$(LIB_SRC))
	@rm -f $@
	$(AR) rcs $@ $^

$(BIN): $(call obj,$(CLI_SRC)) $(LIB)
	$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS) $(shell pkg-config --libs libedit 2>/dev/null)

$(BUILD)/tests/%: $(BUILD)/tests/%.o $(call obj,$(SUPPORT_SRC)) $(LIB)
	$(CC) $(LDFLAGS) -o $@ $^ $(LDLIBS) -lcmocka
$(BUILD)/tests/%.o: ALLFLAGS += -Itests

tests: $(TESTS)

# One test binary: make test T=text/test_bpe
test: $(BUILD)/tests/$(T)
	$(BUILD)/tests/$(T)

clean:
	rm -rf build build-*

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
.PHONY: all tests test clean check demo bench install
.SECONDARY:
