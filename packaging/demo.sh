# shellcheck shell=bash
# ./build.sh demo: see packaging/demo.py.

demo() {
    build_deb
    install_packages "${MACHINE_PACKAGES[@]}"
    fetch_wheels demo
    exec /usr/bin/python3 packaging/demo.py "$PACKAGE" "$WHEELS"
}
