# shellcheck shell=bash
# What is built for the tests, for every script here: the same packages with the same features each time, because cargo
# builds a dependency anew wherever these differ. A script adds which targets it wants.

# What packages and the container are built with; the build without the features stands behind the release benches.
features=(--features tidegate/otlp)

# The product and what tests it.
# shellcheck disable=SC2034 # used by who sources this
product=(--locked --workspace --exclude simulation "${features[@]}")

# The simulation beside it, which switches on seams that the product is built without.
# shellcheck disable=SC2034
simulation=(--locked --workspace "${features[@]}" --bin simulation --test determinism --test histories)

# The executable of this name, from what cargo tells as JSON.
executable() { sed -n 's/.*"name":"'"$1"'".*"executable":"\([^"]*\)".*/\1/p'; }
