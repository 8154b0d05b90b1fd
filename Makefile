# Commands for a checkout. Most of them run `setup` first, which skips existing parts.

PREFIX ?= $(HOME)/.local
SEED ?= 0
HOURS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test sim mutations drill faults chaos soak mpi fuzz parity install clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: ## create .venv with libtorch, .libtorch, and the release build
	@scripts/setup.sh

demo: setup ## train on synthetic images with two CPU workers and show the AP table; SEED=0
	@scripts/demo.sh $(SEED)

test: setup ## check formatting and lints, and run all tests
	@scripts/test.sh

sim: setup ## build simulated CUDA devices in target/sim and run their tests and the black-box tests on them
	@scripts/sim.sh --test
	OMP_NUM_THREADS=1 cargo test --release --workspace --test blackbox -- simulated

mutations: setup ## inject bugs and show which test on simulated devices detects each
	@scripts/sim_mutations.sh

mpi: setup ## build the library for workers under mpirun; downloads Open MPI unless MPICC is set
	@scripts/mpi.sh

drill: faults chaos ## run faults, chaos, a job with 64 workers, one of 2,000 steps, and one that Slurm requeues ten times
	FNET_SLURM_STARTS=10 cargo test --release --workspace --test blackbox -- slurm
	cargo test --release --workspace --test blackbox -- --ignored --exact fault_injection::sixty_four_workers_train_ten_steps_and_stop_cleanly \
		memory::a_worker_is_flat_after_a_thousand_steps_of_a_model_that_fills_the_cache_of_convolutions

faults: setup ## inject every fault in every phase on every rank, FNET_FAULTS_ROUNDS=20 times; takes more than an hour
	cargo test --release --workspace --test blackbox -- --ignored --exact fault_injection::every_fault_in_every_phase_on_every_rank --nocapture

chaos: setup ## run the chaos test with FNET_CHAOS_EVENTS=200 random disturbances; takes 10 minutes
	cargo test --release --workspace --test blackbox -- --ignored --exact chaos::chaos --nocapture

soak: setup ## disturb jobs of three nodes in network namespaces at random; HOURS=1 SEED=0 (draws one); needs root
	@scripts/soak.py $(HOURS) $(SEED)

fuzz: ## fuzz each file parser for FNET_FUZZ_SECONDS=600 seconds; needs nightly Rust and cargo-fuzz
	for target in fuzz/fuzz_targets/*.rs; do scripts/fuzz.sh $$(basename $$target .rs) $${FNET_FUZZ_SECONDS:-600} || exit 1; done

parity: setup ## compare every stage with MMDetection and write docs/tables/parity.md; needs FNET_TEST_DATA
	@scripts/parity.sh

install: setup ## install the programs into PREFIX/bin; PREFIX=~/.local
	@scripts/install.sh "$(PREFIX)"

clean: ## remove the build and the generated data; keep .venv and work_dirs
	cargo clean
	rm -rf data/synth*
