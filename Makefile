# Everything that is done with this tree, in one place; meson and ninja do the building.
#
#   make          build everything               make test    all tests; last line "N passed, N failed"
#   make run      a Debian guest, to its shell   make bench   measure beside native and QEMU
#   make lint     format, clang-tidy, includes   make asan    the tests under ASan and UBSan
#   make fuzz     each fuzzer, FUZZ_SECONDS      make clean   forget what was built
#   make install  under PREFIX (/usr/local)   make deb    a Debian package, in dist/
#   make test-deb   the package in a clean Debian 12, as root (not part of make test)
#   make test-container   the tests of containers alone
#   make test-state   saving and restoring: every step, every field, 50 rounds; some hours (not part of make test)
#   make soak   ten minutes of load on 4 vCPUs (SOAK_MINUTES), not part of make test

BUILD        ?= build
FUZZ_SECONDS ?= 20
SOAK_MINUTES ?= 10
BENCHES      ?= block disk net debian kernel state jail images daemon idle
SANITIZE     := -Db_sanitize=address,undefined -Db_lundef=false --buildtype=debugoptimized -Dwerror=false
# What the sanitizers find ends the program. Signals run on stacks that the engine chose (use_sigaltstack), and host faults
# in translated code are the engine's (allow_user_segv_handler). See docs/sanitizers.md.
SANITIZER_ENV := ASAN_OPTIONS=use_sigaltstack=0:allow_user_segv_handler=1:detect_stack_use_after_return=0:detect_leaks=1 \
  UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
MAKEFLAGS    += --no-print-directory


PREFIX       ?= /usr/local

.PHONY: all deps run test test-container test-state soak bench install deb test-deb lint asan fuzz clean

all: deps
	@test -f $(BUILD)/build.ninja || { echo "fonda: configuring $(BUILD)"; meson setup $(BUILD) >/dev/null; }
	@echo "fonda: building in $(BUILD)"
	@ninja -C $(BUILD) --quiet
	@ln -sf cli/fonda $(BUILD)/fonda
	@ln -sf vm/fonda-vmm $(BUILD)/fonda-vmm
	@ln -sf daemon/fondad $(BUILD)/fondad

deps:
	@tools/install-deps build

run: all
	@tools/run-guest

test: all
	@tools/install-deps test
	@tools/fetch-guest $(BUILD)/guest devices storage soak state i386
	@tools/run-tests --build $(BUILD) $(TEST_OPTIONS)

test-container: all
	@tools/install-deps test
	@tools/fetch-guest $(BUILD)/guest
	@tests/container/run --build $(BUILD)

test-state: all
	@tools/install-deps test
	@tools/fetch-guest $(BUILD)/guest devices state
	@FONDA_STATE_ROUNDS=50 FONDA_STATE_FAULTS=all FONDA_STATE_FUZZ=all tests/state/run --build $(BUILD)

soak: all
	@tools/install-deps test
	@tools/fetch-guest $(BUILD)/guest storage soak
	@tests/soak/run --build $(BUILD) --minutes $(SOAK_MINUTES) --verbose

bench: all
	@tools/install-deps bench
	@tools/fetch-guest $(BUILD)/guest devices storage
	@status=0; bench/run || status=$$?; for one in $(BENCHES); do \
	  echo "bench/$$one"; bench/$$one --build $(BUILD) || status=$$?; done; exit $$status

install: all
	@meson configure $(BUILD) --prefix=$(PREFIX)
	@meson install -C $(BUILD) --quiet

deb: deps
	@tools/make-deb dist

test-deb:
	@tools/install-deps build package
	@tests/packaging/run

lint: all
	@tools/install-deps lint
	@tools/lint $(BUILD)

asan: deps
	@tools/install-deps test
	@test -f build-asan/build.ninja || { echo "fonda: configuring build-asan"; meson setup build-asan $(SANITIZE) >/dev/null; }
	@$(MAKE) BUILD=build-asan all
	@tools/fetch-guest build/guest
	@$(SANITIZER_ENV) tools/run-tests --build build-asan --only unit,diff,guest,system

fuzz:
	@tools/install-deps build test fuzz
	@test -f build-fuzz/build.ninja || { echo "fonda: configuring build-fuzz"; \
	  CC=clang meson setup build-fuzz $(SANITIZE) -Dc_args=-fsanitize=fuzzer-no-link >/dev/null; }
	@echo "fonda: building in build-fuzz"
	@ninja -C build-fuzz --quiet $$(ninja -C build-fuzz -t targets all | sed -n 's/^\(fuzz\/.*-libfuzzer\):.*/\1/p')
	@tools/run-fuzzers build-fuzz $(FUZZ_SECONDS)

clean:
	rm -rf build build-asan build-fuzz
