# shellcheck shell=bash
# ./build.sh model: dist/SmolLM2-135M-Instruct, the model of the demo.

model() {
    build_deb
    install_packages "${MACHINE_PACKAGES[@]}"
    fetch_wheels demo
    exec /usr/bin/python3 packaging/demo.py "$PACKAGE" "$WHEELS" dist
}
