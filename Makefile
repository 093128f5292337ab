# Two commands are enough: `make demo` and `make test`. Each sets up what it needs in a folder of its own.
PYTHON ?= python3
DEMO_ENV := .venv/demo
DEV_ENV := .venv/dev
BENCH_ENV := .venv/bench
DOCS_ENV := .venv/docs
PROVIDER_ENV := .venv/openvino-provider
TRAINERS_ENV := .venv/trainers
DEMO_OUT ?= demo
BENCH_OUT ?= bench
BENCH_MODE ?= full
REAL_DATA ?= ../shared/data
FUZZ_SECONDS ?= 120
NATIVE ?= build/native
NATIVE_CHECKS ?= abi address thread "valgrind 3" "fuzz 60" "load 50"
openvino_dir = $$($(DEV_ENV)/bin/python -c 'import pathlib, openvino; print(pathlib.Path(openvino.__file__).parent / "cmake")')
EXTRAS_PYTHONS ?= python3.11 python3.13

.PHONY: help demo test test-slow test-openvino-provider test-trainers native native-check fuzz lint docs wheel extras bundle validate bench bench-peers clean

help:
	@echo "make demo       images from the shipped bundle through OpenVINO (no torch), with a contact sheet"
	@echo "make test       every test but the slow ones"
	@echo "make test-slow  the slow tests: training, distillation and export from end to end"
	@echo "make test-openvino-provider  the runtime contract on ONNX Runtime's OpenVINO provider, in an environment of its own"
	@echo "make test-trainers  what nnU-Net, TorchIO and Albumentations make of augmented sets, in an environment of their own"
	@echo "make native     libcsg_edge, the C library: built, tested and packed (packages: runtimes/native/packages.txt)"
	@echo "make native-check  its sanitizers, fuzzers, leaks, ABI and a root without Python (some ten minutes)"
	@echo "make fuzz       mutated files for every reader, two minutes each (FUZZ_SECONDS)"
	@echo "make lint       ruff, mypy, and who may import whom"
	@echo "make docs       build the documentation into site/ and check it; nothing is fetched but Python packages"
	@echo "make wheel      build the wheel and check what is in it"
	@echo "make extras     ask pip whether every extra resolves (EXTRAS_PYTHONS, some minutes; nothing is installed)"
	@echo "make validate   judge the shipped bundle beside its teacher on the real sets (some ten minutes; report in validation/)"
	@echo "make bench      latency of every engine of the shipped bundle (some four minutes each; BENCH_MODE=short: half a minute)"
	@echo "make bench-peers  the same image by benchmark_app, ONNX Runtime, torch, diffusers (half an hour; resumes)"
	@echo "make bundle     train, distil and export msk-256 again (hours; needs the real sets, see export/README.md)"

# A stamp says that an environment holds what pyproject.toml asks for.
$(DEMO_ENV)/.ready: pyproject.toml
	@echo "== setting up $(DEMO_ENV): NumPy, OpenCV, click, OpenVINO"
	@$(PYTHON) -m venv $(DEMO_ENV)
	@$(DEMO_ENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[openvino]'
	@touch $@

$(DEV_ENV)/.ready: pyproject.toml
	@echo "== setting up $(DEV_ENV): everything the tests need, PyTorch included (a few minutes)"
	@$(PYTHON) -m venv $(DEV_ENV)
	@$(DEV_ENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

$(BENCH_ENV)/.ready: pyproject.toml
	@echo "== setting up $(BENCH_ENV): OpenVINO, ONNX Runtime, MLCommons LoadGen"
	@$(PYTHON) -m venv $(BENCH_ENV)
	@$(BENCH_ENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@touch $@

$(DOCS_ENV)/.ready: pyproject.toml
	@echo "== setting up $(DOCS_ENV): MkDocs Material, mkdocstrings, mkdocs-click"
	@$(PYTHON) -m venv $(DOCS_ENV)
	@$(DOCS_ENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@

demo: $(DEMO_ENV)/.ready
	@rm -rf $(DEMO_OUT)/phantom $(DEMO_OUT)/images
	@echo "== phantom masks and contexts"
	@$(DEMO_ENV)/bin/csg-edge phantom --out $(DEMO_OUT)/phantom --count 12 --seed 7
	@echo "== checking the shipped bundle on this machine"
	@$(DEMO_ENV)/bin/csg-edge verify
	@echo "== images from masks and contexts, one denoiser evaluation each"
	@$(DEMO_ENV)/bin/csg-edge generate --mask $(DEMO_OUT)/phantom/masks --context $(DEMO_OUT)/phantom/contexts \
		--runtime openvino --out $(DEMO_OUT)/images --sheet

test: $(DEV_ENV)/.ready
	@echo "== tests"
	@$(DEV_ENV)/bin/python -m pytest -m "not slow" -n auto --dist worksteal

# The package with ONNX Runtime's OpenVINO provider takes the place of onnxruntime, so it has an environment of its own.
$(PROVIDER_ENV)/.ready: pyproject.toml
	@echo "== setting up $(PROVIDER_ENV): ONNX Runtime with its OpenVINO provider"
	@$(PYTHON) -m venv $(PROVIDER_ENV)
	@$(PROVIDER_ENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[onnxruntime-openvino]' pytest
	@touch $@

test-openvino-provider: $(PROVIDER_ENV)/.ready
	@echo "== the runtime contract on ONNX Runtime's OpenVINO provider"
	@$(PROVIDER_ENV)/bin/python -m pytest tests/test_runtimes.py -k TestOnnxRuntimeOpenVino

# What people train with; nothing here needs it, and it brings much along.
$(TRAINERS_ENV)/.ready: pyproject.toml
	@echo "== setting up $(TRAINERS_ENV): nnU-Net, TorchIO, Albumentations"
	@$(PYTHON) -m venv $(TRAINERS_ENV)
	@$(TRAINERS_ENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[trainers]'
	@touch $@

test-trainers: $(TRAINERS_ENV)/.ready
	@echo "== sets and transforms in nnU-Net, TorchIO, Albumentations"
	@$(TRAINERS_ENV)/bin/python -m pytest -q tests/trainers

test-slow: $(DEV_ENV)/.ready
	@echo "== slow tests"
	@$(DEV_ENV)/bin/python -m pytest -m slow -n auto --dist worksteal

# OpenVINO is the wheel's; its CMake files lie beside it.
native: $(DEV_ENV)/.ready
	@echo "== libcsg_edge"
	@cmake -S runtimes/native -B $(NATIVE) -G Ninja -DOpenVINO_DIR=$(call openvino_dir) > /dev/null
	@cmake --build $(NATIVE) > /dev/null
	@$(DEV_ENV)/bin/python -m pytest -q -n auto --dist worksteal tests/native
	@$(DEV_ENV)/bin/python runtimes/native/pack.py --build $(NATIVE) --bundle csg_edge/models/msk-256 --out dist

native-check: native
	@set -e; for check in $(NATIVE_CHECKS) "root dist/csg-edge-native-linux-$$(uname -m).tar.gz"; do \
		OPENVINO_DIR=$(call openvino_dir) runtimes/native/check.sh $(NATIVE)-check $$check; done

fuzz: $(DEV_ENV)/.ready
	@echo "== mutated files for every reader, $(FUZZ_SECONDS) seconds each"
	@$(DEV_ENV)/bin/python tests/fuzz/fuzz.py --seconds $(FUZZ_SECONDS)

lint: $(DEV_ENV)/.ready
	@echo "== ruff, mypy, import contracts"
	@$(DEV_ENV)/bin/ruff check .
	@$(DEV_ENV)/bin/ruff format --check .
	@$(DEV_ENV)/bin/mypy
	@$(DEV_ENV)/bin/lint-imports

docs: $(DOCS_ENV)/.ready
	@echo "== documentation"
	@NO_MKDOCS_2_WARNING=1 $(DOCS_ENV)/bin/mkdocs build --quiet --strict --clean
	@$(DOCS_ENV)/bin/python tests/check_site.py site

wheel: $(DEV_ENV)/.ready
	@echo "== wheel"
	@rm -rf dist
	@$(DEV_ENV)/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	@$(DEV_ENV)/bin/python tests/check_wheel.py dist/*.whl

extras: wheel
	@echo "== extras"
	@$(DEV_ENV)/bin/python tests/check_extras.py dist/*.whl $(EXTRAS_PYTHONS)

bundle: $(DEV_ENV)/.ready
	@$(DEV_ENV)/bin/python export/build.py export/msk-256.toml --data $(REAL_DATA)

validate: $(DEV_ENV)/.ready
	@$(DEV_ENV)/bin/csg-edge validate --data $(REAL_DATA) --teacher export/msk-256.teacher --guidance 1.5 --steps 1,4 --out validation

bench: $(BENCH_ENV)/.ready
	@$(BENCH_ENV)/bin/csg-edge bench --mode $(BENCH_MODE) --steps 1,4 --quality benchmarks/results/quality.json --out $(BENCH_OUT)

bench-peers: $(DEV_ENV)/.ready
	@$(DEV_ENV)/bin/python benchmarks/peers/run.py --resume

clean:
	rm -rf .venv dist $(DEMO_OUT)/phantom $(DEMO_OUT)/images .pytest_cache .mypy_cache .ruff_cache
