# Lists the recipes
default:
    @just --list --unsorted

# The main job: boots kind, installs the driver, runs the scenarios, counts what is left
e2e *args:
    cargo e2e run {{ args }}

# All tests of tiers T0 to T2
test *args:
    cargo test --workspace {{ args }}

# The driver killed at every failpoint, before and after, and every step made to fail
crash-sweep *args:
    cargo test -p holdfast-driver --test crash -- {{ args }}

# What this machine has, lacks, and how to fix it
doctor *args:
    cargo e2e doctor {{ args }}

# Formatting and lints, as ci.yml has them
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings

# Licenses, banned crates, sources
deny:
    cargo deny check bans licenses sources

# Everything that must pass before a merge
ci:
    .ci/run
