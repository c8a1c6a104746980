# shellcheck shell=bash
# ./build.sh clean: remove what builds made, but keep the wheels and base trees for the next build.

clean() {
    rm -rf dist "$CACHE/build" "$CACHE"/*.log
}
