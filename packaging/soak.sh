# shellcheck shell=bash
# ./build.sh soak [--hours N] [--seed N] [--fault-every SEC]: see bench/soak/__main__.py.

soak() {
    build_deb
    install_packages "${MACHINE_PACKAGES[@]}" gnuplot-nox
    export CITADEL_BENCH_PACKAGE=$PACKAGE PYTHONDONTWRITEBYTECODE=1
    exec /usr/bin/python3 -m bench.soak "$@"
}
