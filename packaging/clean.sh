# shellcheck shell=bash
# ./build.sh clean: what a build made, but not the wheels and base trees that the next one uses again.

clean() {
    rm -rf dist "$CACHE/build" "$CACHE"/*.log
}
