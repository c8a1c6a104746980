# shellcheck shell=bash
# ./build.sh bench [--rounds N] [GROUP…]: see bench/__main__.py.

bench() {
    build_deb
    install_packages "${MACHINE_PACKAGES[@]}" gnuplot-nox
    fetch_wheels "$FLAVOUR"
    export CITADEL_BENCH_WHEELS=$WHEELS
    fetch_wheels demo
    export CITADEL_BENCH_PACKAGE=$PACKAGE CITADEL_BENCH_DEMO=$WHEELS PYTHONDONTWRITEBYTECODE=1
    exec /usr/bin/python3 -m bench "$@"
}
