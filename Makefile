# `make` lists what there is. Everything installs or fetches what it needs, or says what to install.

CARGO ?= cargo
FUZZ_SECONDS ?= 600
# Arguments of benches/compare, e.g. BENCH='--only push,fetch'.
BENCH ?=
SHELL := /bin/bash
# Tests wait more than they compute, for servers, for time limits, for faults: two and a half of them keep a processor busy.
export RUST_TEST_THREADS ?= $(shell echo $$(( $$(nproc) * 5 / 2 )))

.DEFAULT_GOAL := help

.PHONY: help build dist test-packages test-failover image test-compose test-containers test-volumes test-units test-commands test-page manifests demo demo-full demo-s3 test corruption agent-week agent-idle heal-campaign files-campaign logical-campaign find-campaign drills test-moto test-localstack patroni sets oracle sweep soak scale soak-short soak-backups redis-moments redis-rounds estimates expiry-model lives golden check fuzz bench

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\): .*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

# The small programs are built on their own: cargo unifies features over one build, and would give them all of pitr's. They start for each
# segment: optimised as a whole they take 2 % less processor time, and half a minute more to build.
WHOLE := CARGO_PROFILE_RELEASE_LTO=fat CARGO_PROFILE_RELEASE_CODEGEN_UNITS=1
build: export PITR_COMMIT ?= $(shell git describe --always --dirty --abbrev=12 2>/dev/null)
build: ## the three release programs, in target/release
	scripts/get-tools build
	$(CARGO) build --release -p pitr
	$(WHOLE) $(CARGO) build --release -p pitr-archive -p pitr-restore

# ARCH=aarch64 makes packages for that processor, and tests them under qemu.
ARCH ?=
dist: ## tarball, .deb and .rpm in target/dist, for every distribution since glibc 2.31 (as root, with debootstrap; ARCH=aarch64)
	scripts/get-tools packages
	scripts/dist $(addprefix --arch ,$(ARCH))

test-packages: ## the .deb in fresh roots of Debian 12 and 13: installed, archived, backed up, restored (as root, after make dist; ARCH=aarch64)
	scripts/get-tools packages
	scripts/test-packages $(addprefix --arch ,$(ARCH))

test-failover: ## docs/repmgr.md with Debian's repmgr and pg_auto_failover: the primary dies under load, and comes back (as root, after make dist)
	scripts/test-failover

image: ## the image pitr-postgres, from the .deb of target/dist (after make dist), and the image pitr, without a server
	docker build --file docker/Dockerfile --tag pitr-postgres .
	docker build --file docker/Dockerfile --tag pitr --target pitr .

test-compose: ## docker/compose.yaml: bucket, receiver, scheduled backups, standby; the server is lost and comes back (a Docker engine, or root)
	scripts/test-compose

test-containers: ## examples/testcontainers in Python and in Rust, with the image of this tree (a Docker engine, or root)
	scripts/test-containers

test-volumes: ## volumes of Docker as a source of files, with their containers stopped, paused, and pitr killed (a Docker engine, and root)
	scripts/test-volumes

test-units: ## the units of the packages, hardened, under a systemd of their own: each does its work (as root, with Debian's systemd and PostgreSQL)
	$(CARGO) build --workspace
	scripts/test-units

test-commands: ## Debian's MariaDB, etcd and SQLite as sources by command: recipes of docs/files.md, dumps that are cut short, checks that fail; contrib/zabbix by its agent
	scripts/get-tools test
	$(CARGO) build
	scripts/test-commands
	scripts/test-zabbix

test-page: ## the agent's status page in Chromium: what it shows, by keyboard, on a telephone, light and dark, with 1 000 backups (PITR_PAGE_PICTURES=docs/images takes the pictures)
	scripts/get-tools test
	$(CARGO) test --test it --no-run
	scripts/test-page

manifests: ## docker/kubernetes against the schemas of Kubernetes, the dashboard and its provisioning against Grafana's models, which pip fetches once (140 MB)
	scripts/check-manifests
	scripts/check-dashboard

demo: build ## a table comes back; a whole server is lost, and every confirmed commit comes back; a table comes back into the running server
	scripts/demo

demo-full: build ## a shop of PostgreSQL, Redis, uploads and settings is wrecked, and comes back to the minute before with one command
	scripts/demo-full

demo-s3: build ## the lost server with the repository in a bucket of an S3 server that it starts itself (moto, which pip fetches once, 450 MB)
	scripts/s3-server moto bash -c 'PITR_DEMO_S3=$$PITR_TEST_S3 exec scripts/demo'

# With a number as PITR_TEST_TURN (.ci/run sets it) one turn runs: the tests that scripts/tests-of-turn chooses, and every third call of a sweep.
test: ## all tests, on PostgreSQL 13 to 19
	scripts/get-tools test
	scripts/get-postgres
	scripts/get-redis
	status=0; $(CARGO) test --workspace --no-fail-fast --lib --bins --test tidy || status=1; \
	$(if $(PITR_TEST_TURN),set -o pipefail; names=$$($(CARGO) test --test it -- --list | scripts/tests-of-turn $(PITR_TEST_TURN)) || exit 1;) \
	$(CARGO) test --no-fail-fast --test it -- $(if $(PITR_TEST_TURN),--exact $$names) || status=1; \
	$(CARGO) test --workspace --doc || status=1; exit $$status

test-moto: ## the contract of stores, whole cycles and the policies of roles on moto's S3, which pip fetches once (450 MB)
	$(MAKE) --no-print-directory on-s3 S3=moto

test-localstack: ## the same on LocalStack's S3, likewise; neither docker nor an account is needed
	$(MAKE) --no-print-directory on-s3 S3=localstack

# The same code that make test runs on the S3 server of the tests. S3 may be s3s-fs or garage, too, which do not pass: docs/stores.md.
ON_S3 := s3::an_object_store_keeps_every_promise s3_cycle::a_whole_cycle_on_s3 s3_cycle::a_cycle_in_a_bucket_that_locks s3_content::files_on_s3 s3_content::dumps_on_s3 s3_content::configuration_on_s3
# Policies are judged by a moto of their own.
ON_S3 += $(if $(filter moto,$(S3)),s3_roles::each_role_does_its_work_with_the_printed_policy_and_no_more s3_roles::a_host_that_only_writes_does_its_work_without_reading_backups s3_roles::a_host_that_may_not_read_back_hears_that_the_store_confirms_nothing)
.PHONY: on-s3
on-s3:
	scripts/get-tools test
	scripts/get-postgres 17
	$(CARGO) test --test it --no-run
	mkdir -p target/on-s3
	scripts/s3-server $(S3) $(CARGO) test --test it -- --exact --show-output $(ON_S3) 2>&1 | tee target/on-s3/$(S3).log
	@grep -q '^test result: ok. $(words $(ON_S3)) passed' target/on-s3/$(S3).log

# The contract and a whole cycle on emulators of Azure and Google, which npm and pip fetch once. GCS=fake-gcs does not pass: docs/stores.md.
GCS := fake-gcs-with-conditions
.PHONY: on-azure on-gcs on-blobs
on-azure: ## the contract of stores and a whole cycle on Azurite, which npm fetches once
	$(MAKE) --no-print-directory on-blobs BLOBS=azurite ON_BLOBS="blob::azure_keeps_every_promise blob_cycle::a_whole_cycle_on_azure"

on-gcs: ## the same on fake-gcs-server, which pip fetches once
	$(MAKE) --no-print-directory on-blobs BLOBS=$(GCS) ON_BLOBS="blob::google_keeps_every_promise blob_cycle::a_whole_cycle_on_google"

on-blobs:
	scripts/get-tools test
	scripts/get-postgres 18
	$(CARGO) test --test it --no-run
	mkdir -p target/on-blobs
	scripts/blob-server $(BLOBS) $(CARGO) test --test it -- --exact --show-output $(ON_BLOBS) 2>&1 | tee target/on-blobs/$(BLOBS).log
	@grep -q '^test result: ok. $(words $(ON_BLOBS)) passed' target/on-blobs/$(BLOBS).log
	@! grep '^not run: ' target/on-blobs/$(BLOBS).log

# A snapshot that no scene writes any more is removed by hand: golden::every_snapshot_belongs_to_a_scene names it.
golden: ## accept what the commands print now as what they shall print (tests/it/golden/snapshots); read the diff
	scripts/get-tools test
	scripts/get-postgres 17
	INSTA_UPDATE=always $(CARGO) test --test it -- golden::

oracle: ## 40 random targets on each major: restored clusters equal what pg_waldump and the clients saw
	scripts/get-tools test
	scripts/get-postgres
	ORACLE_TARGETS=$${ORACLE_TARGETS:-40} $(CARGO) test --test it -- oracle:: --nocapture

# Where it was cut short: make expiry-model FROM=<the last seed it printed>.
FROM ?= 1
expiry-model: ## a million random histories of backups, WAL, rules and clocks keep what retention promises
	PITR_EXPIRY_HISTORIES=$$((1000001 - $(FROM))) PITR_EXPIRY_FROM=$(FROM) $(CARGO) test --release --lib x_random_ -- --nocapture

soak: ## 1 000 rounds of killing receiver, primary, network and power under load; nothing acknowledged may be lost
	@$(MAKE) --no-print-directory soak-short SOAK_ROUNDS=$${SOAK_ROUNDS:-1000}

soak-short: ## the same, 50 rounds
	scripts/get-tools test
	scripts/get-postgres
	SOAK_ROUNDS=$${SOAK_ROUNDS:-50} SOAK_SEED=$${SOAK_SEED:-$$RANDOM} $(CARGO) test --test it -- receiver_soak:: --nocapture

# What has passed stands in BACKUP_SOAK_PROGRESS: broken off, it goes on there. Remove the file to begin anew.
soak-backups: build ## 20 histories of 25 steps on each major: backups of every kind, method and source under load, killed, deleted and disturbed, in directories and buckets; random moments come back
	scripts/get-tools test
	scripts/get-postgres
	PITR_TEST_PROGRAMS=$(CURDIR)/target/release BACKUP_SOAK_HISTORIES=$${BACKUP_SOAK_HISTORIES:-20} BACKUP_SOAK_PROGRESS=$${BACKUP_SOAK_PROGRESS:-$(CURDIR)/target/backup-soak/progress} \
	$(CARGO) test --test it -- backup_soak:: --nocapture

scale: build ## clusters of 10 000, 100 000 and 1 000 000 files, and a chain of 500 incrementals: time and at most 100 MiB of memory of each step (30 GB of room, some hours)
	scripts/get-postgres 18
	PITR_TEST_PROGRAMS=$(CURDIR)/target/release \
	PITR_SCALE_FILES="$${PITR_SCALE_FILES:-10000 100000 1000000}" PITR_SCALE_CHAIN=$${PITR_SCALE_CHAIN:-500} \
	$(CARGO) test --test it -- growth:: --nocapture

estimates: ## after three drills, ten more are estimated by "pitr plan": nine within 20 %, normalised by a control copy
	scripts/get-postgres 17
	PITR_ESTIMATES=$${PITR_ESTIMATES:-10} $(CARGO) test --test it -- estimates:: --nocapture

sets: ## 200 recoveries to marks of the exactest level, 100 more with uploads, and 200 to times: under load, killed at random steps, taken back with all contents
	scripts/get-tools test
	scripts/get-postgres 17
	scripts/get-redis redis-7
	PITR_TEST_SET_ROUNDS=$${PITR_TEST_SET_ROUNDS:-200} $(CARGO) test --test it -- sets::campaign:: --nocapture

# What has passed stands in REDIS_MOMENTS_PROGRESS and REDIS_ROUNDS_PROGRESS: broken off, they go on there. Remove the files to begin anew.
redis-moments: ## 500 random moments of random histories on each Redis and Valkey: the restored state is that of the live server
	scripts/get-postgres 17
	scripts/get-redis
	REDIS_MOMENTS=$${REDIS_MOMENTS:-500} REDIS_MOMENTS_PROGRESS=$${REDIS_MOMENTS_PROGRESS:-$(CURDIR)/target/redis/moments} \
	$(CARGO) test --test it -- redis::moments:: --nocapture

redis-rounds: ## 1 000 rounds: receiver, servers, network and disks of Redis and Valkey fail; what WAIT confirmed comes back
	scripts/get-postgres 17
	scripts/get-redis
	REDIS_ROUNDS=$${REDIS_ROUNDS:-200} REDIS_ROUNDS_PROGRESS=$${REDIS_ROUNDS_PROGRESS:-$(CURDIR)/target/redis/rounds} \
	$(CARGO) test --test it -- redis::rounds:: --nocapture

patroni: ## 50 rounds: the leader of three nodes under Patroni dies under load, and everything that was promised is there
	scripts/get-tools test
	scripts/get-postgres
	PATRONI_ROUNDS=$${PATRONI_ROUNDS:-50} PATRONI_SEED=$${PATRONI_SEED:-$$RANDOM} $(CARGO) test --test it -- patroni:: --nocapture

agent-week: ## a simulated week of two agents in ten minutes, killed 500 times: no run and no alert is lost or comes twice, nothing wrong looks green
	scripts/get-tools test
	scripts/get-postgres 17
	PITR_AGENT_KILLS=$${PITR_AGENT_KILLS:-500} PITR_AGENT_SECONDS=$${PITR_AGENT_SECONDS:-600} PITR_AGENT_SEED=$${PITR_AGENT_SEED:-$$RANDOM} \
	$(CARGO) test --test it -- agent_week:: --nocapture

agent-idle: ## an idle agent beside 1 000 backups: at most 30 MiB and 0.1 % of a processor, and 10 ms for a scrape; else it fails (release build)
	$(CARGO) bench --bench agent_idle

# What has passed stands in LIVES_PROGRESS: broken off, it goes on there. Remove the file to begin anew.
lives: ## 2 000 random histories of two to four lives of one cluster; every backup is of one life, and nothing that is called safe is lost
	scripts/get-tools test
	scripts/get-postgres
	LIVES_HISTORIES=$${LIVES_HISTORIES:-2000} LIVES_PROGRESS=$${LIVES_PROGRESS:-$(CURDIR)/target/lives/progress} \
	$(CARGO) test --test it -- lives::histories:: --nocapture

# Our own code is optimised for it: without, a case takes ten times as long and more.
corruption: ## 100 000 times one object of a repository, plain or encrypted, is changed; every change is found, and no wrong byte is read
	scripts/get-postgres 18
	PITR_CORRUPTIONS=$${PITR_CORRUPTIONS:-100000} PITR_CORRUPTION_SEED=$${PITR_CORRUPTION_SEED:-$$RANDOM} \
	CARGO_PROFILE_DEV_OPT_LEVEL=2 $(CARGO) test --test it -- corruption:: --nocapture

files-campaign: ## 1 000 random changes of a directory, as root and as a user, and of a bucket, with kills, full disks and expiry; every backup comes back
	scripts/get-tools test
	scripts/get-postgres 17
	PITR_FILES_STEPS=$${PITR_FILES_STEPS:-1000} PITR_FILES_SEED=$${PITR_FILES_SEED:-$$RANDOM} \
	$(CARGO) test --test it -- files::campaign:: files::bucket::whatever files::watch::a_change_under --nocapture

logical-campaign: ## 5 random databases on each major are dumped under load and come back whole; each level finds what it claims to of 30 damages of each dump
	scripts/get-tools test
	scripts/get-postgres
	PITR_LOGICAL_ROUNDS=$${PITR_LOGICAL_ROUNDS:-5} PITR_LOGICAL_DAMAGES=$${PITR_LOGICAL_DAMAGES:-30} PITR_LOGICAL_SEED=$${PITR_LOGICAL_SEED:-$$RANDOM} \
	$(CARGO) test --test it -- logical::campaign:: --nocapture

heal-campaign: ## 10 000 times an object in one of two repositories is damaged, and they heal from one another
	scripts/get-postgres 18
	PITR_HEAL_DAMAGES=$${PITR_HEAL_DAMAGES:-10000} PITR_HEAL_SEED=$${PITR_HEAL_SEED:-$$RANDOM} \
	CARGO_PROFILE_DEV_OPT_LEVEL=2 $(CARGO) test --test it -- heal::campaign:: --nocapture

# What has passed stands in PITR_FIND_PROGRESS: broken off, it goes on there. Remove the file to begin anew.
find-campaign: ## 10 000 random statements on each major: every destructive event is found, none is made up, each target is planned, and 12 (PITR_FIND_TARGETS=all: each) come back
	scripts/get-tools test
	scripts/get-postgres
	PITR_FIND_STATEMENTS=$${PITR_FIND_STATEMENTS:-10000} PITR_FIND_TARGETS=$${PITR_FIND_TARGETS:-12} \
	PITR_FIND_PROGRESS=$${PITR_FIND_PROGRESS:-$(CURDIR)/target/find-campaign/progress} \
	$(CARGO) test --test it -- find::history:: --nocapture

# Damaged pack, segment missing, check that fails, programs missing, no room, server that does not start, other stop than planned, damaged WAL,
# index out of order, wrong checksum, wrong catalog, damaged map of pieces.
PLANTED := $(addprefix drill::,y04_ y05_ y06_ y07_ y08_ y09_ y10_ y11_ y15_ y16_ y29_ y30_)
# What has passed stands in PITR_DRILLS_PROGRESS, likewise.
drills: ## 200 random drills, whole and fast, of plain and encrypted repositories of each major are green; each of 12 planted faults makes one fail
	scripts/get-tools test
	scripts/get-postgres
	PITR_DRILLS=$${PITR_DRILLS:-200} PITR_DRILLS_PROGRESS=$${PITR_DRILLS_PROGRESS:-$(CURDIR)/target/drills/progress} \
	$(CARGO) test --test it -- drill_soak:: --nocapture
	mkdir -p target/drills
	set -o pipefail; CI=1 $(CARGO) test --test it -- $(PLANTED) 2>&1 | tee target/drills/planted.log
	@grep -q '^test result: ok. $(words $(PLANTED)) passed' target/drills/planted.log

sweep: ## backup and expire are killed at every call on the repository, not only at those that decide
	scripts/get-tools test
	scripts/get-postgres 15 18
	PITR_SWEEP=1 $(CARGO) test --test it -- --nocapture b01_killed_and_failing x02_expire_killed

check: ## format, lints, documentation, dependency policy
	$(CARGO) fmt --all --check
	$(CARGO) clippy --quiet --workspace --all-targets -- -D warnings
	$(CARGO) clippy --quiet -p pitr-archive -p pitr-restore -- -D warnings
	$(CARGO) check --quiet --locked --manifest-path fuzz/Cargo.toml --target-dir $${CARGO_TARGET_DIR:-target}
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --quiet --workspace --no-deps --document-private-items
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny check; \
	else echo "advisories are not looked at without cargo deny (cargo install --locked cargo-deny); tests/tidy.rs holds the rest of deny.toml"; fi

fuzz: ## every fuzz target for FUZZ_SECONDS (600)
	scripts/get-tools fuzz
	scripts/fuzz $(FUZZ_SECONDS)

bench: build ## compare with other tools; prints the table of docs/benchmarks.md
	benches/compare $(BENCH)
