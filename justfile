# Recipes of the project; `just` lists them.

_default:
    @just --list

# Formats, lints and tests as the CI does, in a few minutes
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings
    cargo test --locked --lib
    cargo test --locked --test tidy

# All tests, on real Nix daemons and clients
test *ARGUMENTS:
    cargo test --workspace --locked {{ARGUMENTS}}

# All that the CI runs, as root on a Debian
ci:
    .ci/run

# Makes the generated pages and options anew
generate:
    UPDATE=1 cargo test --locked --lib page

# The end-to-end demo
try:
    cargo run --locked -- try

# The documentation as a site in target/book
book:
    mdbook build

# Every link of that site
book-links:
    cargo test --locked --test tidy -- --include-ignored site::

# The Debian package, the tarball and the image
packages:
    packaging/release target/packages
