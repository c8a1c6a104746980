# shellcheck shell=bash
# ./build.sh [deb]: dist/citadel-llm_<version>_amd64.deb

# The address of an index with PyTorch's CPU build, which no default index has; empty if pip is configured to find
# packages elsewhere, or if CITADEL_TORCH_INDEX is empty. The hashes in the lock decide which wheels are accepted.
torch_index() {
    local configured
    if [ -n "${CITADEL_TORCH_INDEX+set}" ]; then
        echo "$CITADEL_TORCH_INDEX"
        return
    fi
    configured=$(timeout 30 "$CACHE/tools/bin/pip" config list 2>/dev/null </dev/null) || true
    grep -qE "^(global|download|:env:)\.(find-links|index-url|extra-index-url|no-index)='.+'" <<<"$configured" ||
        echo https://download.pytorch.org/whl/cpu
}

# fetch_wheels NAME: fetch the wheels of requirements/NAME.txt, check their hashes, and set WHEELS to their folder.
fetch_wheels() {
    local lock=requirements/$1.txt part sources=() folder index
    [ -f "$lock" ] || fail "$lock is missing; make it from requirements/$1.in with ./build.sh lock"
    WHEELS=$CACHE/wheels/$1-$(sha256sum "$lock" | cut -c1-12)
    [ -d "$WHEELS" ] && return
    prepare_tools
    need_space "$CACHE" 3000 "fetching wheels"
    part=$WHEELS.part
    say "fetching the wheels of $lock (once)"
    mkdir -p "$part"
    # Most wheels of an earlier lock are in this lock too.
    for folder in "$CACHE/wheels/$1"-*/; do [ ! -d "$folder" ] || sources+=(--find-links "$folder"); done
    if grep -q '^torch==' "$lock"; then
        index=$(torch_index)
        [ -z "$index" ] || sources+=(--extra-index-url "$index")
    fi
    # Downloaded wheels stay in .part, so that the next attempt resumes a failed download.
    if ! shown "$CACHE/fetch.log" 's/^ *Downloading \([^ ]*\) (\(.*MB\).*/  \1 (\2)/p' \
        "$CACHE/tools/bin/pip" download --no-deps --require-hashes --only-binary :all: --progress-bar off \
        "${sources[@]}" --find-links "$part" -r "$lock" -d "$part"; then
        grep -E '^ERROR' "$CACHE/fetch.log" | tail -n 5 >&2 || true
        fail "pip could not fetch the wheels; check the network. PIP_FIND_LINKS names a folder of wheels, PIP_EXTRA_INDEX_URL another index, CITADEL_TORCH_INDEX one for PyTorch. Full output: $CACHE/fetch.log"
    fi
    mv "$part" "$WHEELS"
}

# A virtual environment with pip, for downloads.
prepare_tools() {
    [ -x "$CACHE/tools/bin/pip" ] && return
    [ "$(id -u)" != 0 ] || install_packages ca-certificates python3 python3-venv
    rm -rf "$CACHE/tools"
    /usr/bin/python3 -m venv "$CACHE/tools" || fail "python3 -m venv failed; install python3-venv"
}

# One hash over all sources of the package.
source_hash() {
    { package_version && source_files | grep -zvE '^((tests|debian/tests|bench|\.ci)/|packaging/(bench|clean|demo|lock|model|soak|test)\.)' | sort -z | xargs -0 sha256sum; } | sha256sum | cut -d' ' -f1
}

build_deb() {
    require_root
    mkdir -p "$CACHE" dist
    install_packages git build-essential debhelper dh-virtualenv lintian python3-venv libnuma1 zstd
    local version package hash tree begun
    version=$(package_version)
    package=citadel-llm_${version}_amd64.deb
    hash=$(source_hash)
    PACKAGE=$PWD/dist/$package
    if [ -f "$PACKAGE" ] && [ "$(cat "dist/.$package.source" 2>/dev/null)" = "$hash" ]; then
        say "dist/$package is up to date, $(megabytes "$PACKAGE") MB"
        echo "Install it with: sudo apt install ./dist/$package"
        return
    fi
    fetch_wheels "$FLAVOUR"
    begun=$SECONDS
    need_space "$CACHE" 8000 "building"
    need_space dist 700 "keeping the package"
    # Two builds in one cache would overwrite each other.
    exec 9>"$CACHE/build.lock"
    flock -n 9 || { say "waiting for another build that uses $CACHE" && flock -w 1800 9; } ||
        fail "another build has been using $CACHE for 30 minutes; end it, or set CITADEL_BUILD_CACHE"
    # The build runs in a copy, so a failed build leaves nothing in the checkout.
    tree=$CACHE/build/citadel-llm-${version%%-*}
    rm -rf "$CACHE/build"
    mkdir -p "$tree"
    source_files | xargs -0 cp --parents -t "$tree" --no-dereference
    sed -i "1s/([^)]*)/($version)/" "$tree/debian/changelog"
    say "building $version (log: $CACHE/build.log)"
    if ! shown "$CACHE/build.log" 's/^\(   dh_[a-z_]*\|environment: .*\|library audit: .*\)$/  \1/p' \
        env -C "$tree" WHEELS="$WHEELS" FLAVOUR="$FLAVOUR" dpkg-buildpackage -b -us -uc; then
        grep -vE '^(make|dh_|dpkg-)' "$CACHE/build.log" | tail -n 15 >&2 || true
        fail "the build failed; full output: $CACHE/build.log, build tree: $tree"
    fi
    say "checking with lintian (takes minutes: it reads every file)"
    lintian --fail-on warning --tag-display-limit 0 "$CACHE/build/$package" >&2 ||
        fail "lintian found problems (see above); the package is $CACHE/build/$package"
    mv "$CACHE/build/$package" "$PACKAGE.new"
    mv "$PACKAGE.new" "$PACKAGE"
    echo "$hash" >"dist/.$package.source"
    echo $((SECONDS - begun)) >"dist/.$package.seconds"
    rm -rf "$CACHE/build"
    # Processes started later, such as the tests, must not inherit the lock.
    exec 9>&-
    say "dist/$package: $(megabytes "$PACKAGE") MB, built in $((SECONDS - started)) s"
    echo "Install it with: sudo apt install ./dist/$package"
}
