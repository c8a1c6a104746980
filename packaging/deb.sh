# shellcheck shell=bash
# ./build.sh [deb]: dist/citadel-llm_<version>_amd64.deb

# fetch_wheels NAME: the wheels of requirements/NAME.txt, each checked against its hash, into a folder that $WHEELS names.
fetch_wheels() {
    local lock=requirements/$1.txt part earlier=() folder
    [ -f "$lock" ] || fail "there is no $lock; ./build.sh lock makes it from requirements/$1.in"
    WHEELS=$CACHE/wheels/$1-$(sha256sum "$lock" | cut -c1-12)
    [ -d "$WHEELS" ] && return
    prepare_tools
    need_space "$CACHE" 3000 "fetching wheels"
    part=$WHEELS.part
    say "fetching the wheels of $lock (once)"
    mkdir -p "$part"
    # Of an earlier lock's wheels most are those of this one.
    for folder in "$CACHE/wheels/$1"-*/; do [ ! -d "$folder" ] || earlier+=(--find-links "$folder"); done
    # What has arrived stays in .part, so that a broken fetch goes on where it stopped.
    if ! shown "$CACHE/fetch.log" 's/^ *Downloading \([^ ]*\) (\(.*MB\).*/  \1 (\2)/p' \
        "$CACHE/tools/bin/pip" download --no-deps --require-hashes --only-binary :all: --progress-bar off \
        "${earlier[@]}" --find-links "$part" -r "$lock" -d "$part"; then
        grep -E '^ERROR' "$CACHE/fetch.log" | tail -n 5 >&2 || true
        fail "the wheels could not be fetched. Is the network there? A folder of wheels can be named with PIP_FIND_LINKS, another index with PIP_EXTRA_INDEX_URL. All of pip's output: $CACHE/fetch.log"
    fi
    mv "$part" "$WHEELS"
}

# pip of a fixed environment, for fetching.
prepare_tools() {
    [ -x "$CACHE/tools/bin/pip" ] && return
    rm -rf "$CACHE/tools"
    /usr/bin/python3 -m venv "$CACHE/tools" || fail "python3 -m venv failed; is python3-venv whole?"
}

# One hash over everything that the package is made of.
source_hash() {
    { package_version && source_files | grep -zvE '^((tests|debian/tests|bench|\.ci)/|packaging/(bench|clean|demo|lock|model|test)\.)' | sort -z | xargs -0 sha256sum; } | sha256sum | cut -d' ' -f1
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
    # Kept open until this shell ends: two builds in one cache would undo each other.
    exec 9>"$CACHE/build.lock"
    flock -n 9 || fail "another build uses $CACHE; wait for it, or set CITADEL_BUILD_CACHE"
    # The inner half builds in a copy, so that a failed build leaves nothing in the checkout.
    tree=$CACHE/build/citadel-llm-${version%%-*}
    rm -rf "$CACHE/build"
    mkdir -p "$tree"
    source_files | xargs -0 cp --parents -t "$tree" --no-dereference
    sed -i "1s/([^)]*)/($version)/" "$tree/debian/changelog"
    say "building $version (log: $CACHE/build.log)"
    if ! shown "$CACHE/build.log" 's/^\(   dh_[a-z_]*\|environment: .*\|library audit: .*\)$/  \1/p' \
        env -C "$tree" WHEELS="$WHEELS" FLAVOUR="$FLAVOUR" dpkg-buildpackage -b -us -uc; then
        grep -vE '^(make|dh_|dpkg-)' "$CACHE/build.log" | tail -n 15 >&2 || true
        fail "the build failed; all of it: $CACHE/build.log, the tree: $tree"
    fi
    say "checking with lintian (some minutes: it looks at every file)"
    lintian --fail-on warning --tag-display-limit 0 "$CACHE/build/$package" >&2 ||
        fail "lintian has found something (above); the package is $CACHE/build/$package"
    mv "$CACHE/build/$package" "$PACKAGE.new"
    mv "$PACKAGE.new" "$PACKAGE"
    echo "$hash" >"dist/.$package.source"
    echo $((SECONDS - begun)) >"dist/.$package.seconds"
    rm -rf "$CACHE/build"
    say "dist/$package: $(megabytes "$PACKAGE") MB, built in $((SECONDS - started)) s"
    echo "Install it with: sudo apt install ./dist/$package"
}
