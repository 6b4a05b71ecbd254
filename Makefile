# make demo   train BDH on the built-in text, draw its curve, let it write, check parity
# make test   lint, types, tests
# Each installs into .venv what is missing. BACKENDS=mlx or BACKENDS=torch: that one alone.

BACKENDS ?= mlx torch

demo: setup
	@.venv/bin/python train/demo.py

test: setup
	@.venv/bin/python -m ruff check
	@.venv/bin/python -m mypy
	@DIPTYCH_BACKENDS="$(BACKENDS)" .venv/bin/python -m pytest -p tests.left_out

setup:
	$(if $(filter-out mlx torch,$(or $(strip $(BACKENDS)),none)),\
		$(error BACKENDS=$(BACKENDS): give mlx, torch or both))
	@./setup.sh $(BACKENDS)

.PHONY: demo test setup
