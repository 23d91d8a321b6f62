# Two commands to try it: `git clone ...`, `make run`. Everything is installed in .venv, nothing outside this folder.

PYTHON ?= python3.11
BIN := .venv/bin

# Where a shell forbids it, each of the many processes would compile all of it again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run inner test check bench bench-search soak pictures

run: .venv/.installed
	@$(BIN)/python -m governance.supervisor

# The memory service of docs/inner.md, beside an instance that `make run` started.
inner: .venv/.installed
	@$(BIN)/python -m examples.inner

# Four at once, since many wait for a process or a browser. In the order of the folders: files of few long tests, as
# those in a browser are, must not come last, one after another.
test: .venv/.installed
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder

# mypy's Django plugin imports the settings. makemigrations warns that it reaches no database: none is there.
check: .venv/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	.ci/with_settings $(BIN)/mypy governance clients tools audit sdk/muniment examples
	$(BIN)/lint-imports
	.ci/with_settings $(BIN)/python -W ignore::RuntimeWarning manage.py makemigrations --check --dry-run
	.ci/with_settings $(BIN)/python manage.py check --deploy --fail-level WARNING

bench: .venv/.installed
	$(BIN)/python -m bench

# Fills a database with ten million records (about 20 minutes, 35 GB) and times the pages over them; ARGS: --help.
bench-search: .venv/.installed
	$(BIN)/python -m bench search $(ARGS)

# The long kill and race runs; a short one of each is in `test`.
soak: .venv/.installed
	$(BIN)/python -m pytest -m soak

# The pictures of the documents, of the demo's data; needs Chromium.
pictures: .venv/.installed
	MUNIMENT_SHOTS=docs/images $(BIN)/python -m pytest tests/governance/test_browser_journey.py

.venv/.installed: requirements.lock sdk/pyproject.toml
	@echo "installing into .venv; this takes about a minute"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e sdk
	@touch $@
