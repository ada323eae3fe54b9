# Everything is made in .venv and beside the sources; `make clean` takes it away.

PYTHON ?= python3
BIN := .venv/bin
NATIVE := $(wildcard precopy/native/*.[ch] precopy/native/build.py \
                     migrate/kernel/native/*.[ch] migrate/kernel/native/build.py)

# Seconds for each parser.
FUZZ_S ?= 60

SANITIZED := build/sanitized
# The one left out wants our own mappings to stay, which ASan's allocator does not.
# Python builds with -fwrapv and -DNDEBUG, which would silence half of it.
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=undefined \
              -fno-wrapv -UNDEBUG -fno-omit-frame-pointer -g
CALL_C := tests/unit/test_precopy_page_set.py tests/unit/test_precopy_page_stream.py \
          tests/unit/test_precopy_page_sink.py tests/unit/test_precopy_task_memory.py \
          tests/unit/test_precopy_address_space.py tests/unit/test_page_sender.py \
          tests/unit/test_procfs.py tests/unit/test_blocked_syscalls.py tests/fuzz \
          --deselect tests/unit/test_procfs.py::test_our_own_maps_and_smaps_agree

# With a terminal or without: nothing that runs here asks a question.
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

help:  ## What can be made
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 16

build: .venv/built  ## Install what is missing, then build the environment and the C cores
	@# Each move starts two processes, which begin much later where Python has to compile
	@# all of it again: it may have been told to write nothing (PYTHONDONTWRITEBYTECODE).
	@$(BIN)/python -m compileall -q bench migrate precopy tests transport

check: build  ## The quick one, without privileges: format, lint, types, contracts, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/pytest -q -rs -m "not live and not vm" </dev/null

test: check live  ## All but the tests in guests; those that need root skip without (listed)

live: build  ## Only the tests that need root and a real kernel to play with
	$(BIN)/pytest -rs -m live </dev/null

sweep: build  ## Every fault at every point of a hand-over, every lie about a process (root)
	$(BIN)/python -m tests.live.handover_sweep --table build/sweep.md </dev/null
	$(BIN)/python -m tests.live.handover_marathon </dev/null
	HOSTILE=thorough $(BIN)/pytest -q tests/live/test_hostile_image.py </dev/null

fuzz: build  ## Bytes that no parser has seen, FUZZ_S seconds for each of them
	$(BIN)/pip install -q -e '.[fuzz]'
	for name in tests/fuzz/corpus/*; do \
	  $(BIN)/python -m tests.fuzz $$(basename $$name) -max_total_time=$(FUZZ_S) || exit 1; \
	done

sanitize: build  ## The C cores with ASan and UBSan, and the tests that call them
	rm -rf $(SANITIZED) && mkdir -p $(SANITIZED)
	cp -R migrate precopy transport bench tests pyproject.toml $(SANITIZED)
	cd $(SANITIZED) && for core in precopy migrate/kernel; do \
	  CFLAGS="$(SANITIZERS)" LDFLAGS="$(SANITIZERS)" $(CURDIR)/$(BIN)/python $$core/native/build.py || exit 1; \
	done
	cd $(SANITIZED) && LD_PRELOAD=$$($(CC) -print-file-name=libasan.so) PYTHONMALLOC=malloc \
	  ASAN_OPTIONS=detect_leaks=0 $(CURDIR)/$(BIN)/pytest -q -p no:cacheprovider $(CALL_C) </dev/null

vm: build  ## All tests that run on other kernels, in emulated guests; an hour or so
	@.ci/emulator
	GUESTS=thorough $(BIN)/pytest -rs -m vm </dev/null

demo: build  ## Two throw-away hosts, a live program, one migration, its report (root)
	$(BIN)/migrate demo

bench: build  ## Measure everything, into build/bench; an hour on a quiet machine (root)
	$(BIN)/pip install -q -e '.[bench]'
	$(BIN)/python -m bench --plots build/bench

format: build  ## Put the sources into the one format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## Remove all that was made here
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	rm -f precopy/_native.c precopy/_native.*.so migrate/kernel/_native.c migrate/kernel/_native.*.so
	find . -name __pycache__ -prune -exec rm -rf {} +

tools:
	@.ci/tools $(or $(wildcard .venv/bin/python),$(PYTHON))

.venv/bin/python: | tools
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml setup.py | .venv/bin/python
	$(BIN)/pip install -q -e '.[dev]'
	@touch $@

.venv/built: .venv/installed $(NATIVE)
	$(BIN)/python precopy/native/build.py
	$(BIN)/python migrate/kernel/native/build.py
	@touch $@

.PHONY: help build check test live sweep fuzz sanitize vm demo bench format clean tools
.DELETE_ON_ERROR:
