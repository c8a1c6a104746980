# shellcheck shell=bash
# ./build.sh lock: resolve requirements/<flavour>.in, and requirements/test.in, into files with a hash for each wheel.

lock() {
    mkdir -p "$CACHE"
    prepare_tools
    "$CACHE/tools/bin/pip" install -q 'uv==0.13.*' || fail "uv could not be installed"
    local name excluded=()
    for name in "$FLAVOUR" test; do
        excluded=()
        if [ -f "requirements/$name-excluded.txt" ]; then
            mapfile -t excluded < <(sed -n 's/^[a-z]/--no-emit-package=&/p' "requirements/$name-excluded.txt")
        fi
        # A lock that named an index would tie every user to ours.
        UV_FIND_LINKS=${PIP_FIND_LINKS:-} "$CACHE/tools/bin/uv" pip compile --quiet --upgrade --python /usr/bin/python3 \
            --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate \
            "${excluded[@]}" "requirements/$name.in" --output-file "requirements/$name.txt" >/dev/null ||
            fail "requirements/$name.in could not be resolved"
        say "requirements/$name.txt: $(grep -c == "requirements/$name.txt") distributions"
    done
}
