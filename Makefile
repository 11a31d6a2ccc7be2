# Short names for the README's commands; everything real is in ./studio.
.PHONY: up test quick demo check format
up: ; ./studio up
test: ; ./studio test
quick: ; ./studio test --quick -x
demo: ; ./studio demo
check: ; .venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy && .venv/bin/lint-imports
format: ; .venv/bin/ruff check --fix . && .venv/bin/ruff format .
