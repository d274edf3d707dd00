# Every target works on a fresh machine that has Python 3.11 or newer and can reach PyPI.
PYTHON ?= python3
BIN := .venv/bin
ARM_PACKAGES := gcc-arm-none-eabi libnewlib-arm-none-eabi libnewlib-dev gcc-arm-linux-gnueabihf libc6-dev-armhf-cross qemu-user

.PHONY: setup test lint format demo smoke docs results browser arm clean
.DEFAULT_GOAL := setup

setup: .venv/.stamp  ## .venv with the command .venv/bin/openwork

.venv/.stamp: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("openwork needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q torch==2.13.0
	$(BIN)/python -m pip install --disable-pip-version-check -q -e ".[dev]"
	touch $@

lint: setup  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: setup  ## rewrites the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint  ## style, types and every test
	$(BIN)/pytest

demo: setup  ## trains on real Python source, finds and checks circuits, prints the table and the page's path
	$(BIN)/openwork run quotes

smoke: setup  ## the same in its smallest form
	$(BIN)/openwork run quotes --preset smoke --out runs/smoke

docs: setup  ## the documentation as a site, in site/
	$(BIN)/zensical build --clean

results: setup  ## the numbers of docs/results: three training seeds
	$(BIN)/python benchmarks/quotes.py --seeds 0 1 2

browser:  ## Chromium, with which the tests look at a page as a user would
	@if command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null; then \
	  echo "a browser is installed"; \
	elif ! command -v apt-get >/dev/null; then \
	  echo "no apt-get here: install Chromium or Chrome by hand, or the browser tests are skipped"; exit 1; \
	elif [ "$$(id -u)" = 0 ]; then \
	  apt-get update -q && apt-get install -q -y --no-install-recommends chromium; \
	elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then \
	  sudo apt-get update -q && sudo apt-get install -q -y --no-install-recommends chromium; \
	else \
	  echo "not root and no sudo without a password: run 'sudo apt-get install chromium', or the browser tests are skipped"; exit 1; \
	fi

arm:  ## compilers for ARM and an emulator, with which exported C is measured and run for small machines
	@if command -v arm-none-eabi-gcc >/dev/null && command -v arm-linux-gnueabihf-gcc >/dev/null && command -v qemu-arm >/dev/null; then \
	  echo "the compilers and the emulator are installed"; \
	elif ! command -v apt-get >/dev/null; then \
	  echo "no apt-get here: install arm-none-eabi-gcc, arm-linux-gnueabihf-gcc and qemu-arm by hand, or the ARM tests are skipped"; exit 1; \
	elif [ "$$(id -u)" = 0 ]; then \
	  apt-get update -q && apt-get install -q -y --no-install-recommends $(ARM_PACKAGES); \
	elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then \
	  sudo apt-get update -q && sudo apt-get install -q -y --no-install-recommends $(ARM_PACKAGES); \
	else \
	  echo "not root and no sudo without a password: run 'sudo apt-get install $(ARM_PACKAGES)', or the ARM tests are skipped"; exit 1; \
	fi

clean:  ## what the other targets made, runs excepted
	rm -rf .venv site dist build .pytest_cache .ruff_cache .hypothesis
