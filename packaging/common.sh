# shellcheck shell=bash
# What the verbs of build.sh share. Sourced with the project's root as the working directory.

# Wheels, base trees and tools: made once, kept between runs, outside the checkout.
CACHE=${CITADEL_BUILD_CACHE:-/var/cache/citadel-llm-build}
FLAVOUR=${FLAVOUR:-cpu}
started=$SECONDS

say() { printf '\033[1m[%3ds]\033[0m %s\n' $((SECONDS - started)) "$*" >&2; }

fail() {
    printf 'build.sh: %s\n' "$1" >&2
    exit "${2:-1}"
}

require_root() {
    [ "$(id -u)" = 0 ] || fail "this needs root: sudo ./build.sh $*"
}

# install_packages NAME…: those that are not installed, from the distribution.
install_packages() {
    local missing=() name
    for name in "$@"; do
        dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null | grep -qx installed || missing+=("$name")
    done
    [ ${#missing[@]} = 0 ] && return
    say "installing ${missing[*]}"
    # The lists of a new machine are empty or old.
    if ! { apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -qy --no-install-recommends install "${missing[@]}"; } >"$CACHE/apt.log" 2>&1; then
        tail -n 5 "$CACHE/apt.log" >&2
        fail "apt-get could not install ${missing[*]}. Is the network there? All of its output: $CACHE/apt.log"
    fi
}

# unpack_package NAME: the files of a Debian package in $CACHE/debian/NAME. Not installed, it starts no service here.
unpack_package() {
    local target=$CACHE/debian/$1
    [ -d "$target" ] && return
    say "fetching $1 (once)"
    rm -rf "$target.part"
    mkdir -p "$target.part"
    if ! { apt-get -q update && env -C "$target.part" apt-get -q download "$1"; } >"$CACHE/apt.log" 2>&1; then
        tail -n 5 "$CACHE/apt.log" >&2
        fail "apt-get could not download $1. Is the network there? All of its output: $CACHE/apt.log"
    fi
    dpkg-deb -x "$target.part"/*.deb "$target.part"
    mv "$target.part" "$target"
}

# need_space DIRECTORY MEGABYTES WHAT
need_space() {
    local free
    free=$(df --output=avail -m "$1" | tail -n 1)
    [ "$free" -ge "$2" ] || fail "$3 needs $2 MB in $1, where $free MB are free; make room, or set CITADEL_BUILD_CACHE"
}

# Version of the package, with the flavour: 1.0.0-1+cpu
package_version() {
    echo "${CITADEL_VERSION:-$(dpkg-parsechangelog -S Version)+$FLAVOUR}"
}

megabytes() { echo $(($(stat -c %s "$1") / 1000000)); }

# shown LOG SED COMMAND…: run a long command with its output in LOG, and show the lines that SED prints of it as they come.
shown() {
    local log=$1 filter=$2
    shift 2
    "$@" 2>&1 | tee "$log" | sed -un "$filter" >&2
    return "${PIPESTATUS[0]}"
}

# Every file that git knows or would add, NUL-separated: what a build is made of.
source_files() {
    git -c safe.directory="$PWD" ls-files -z --cached --others --exclude-standard |
        while IFS= read -r -d '' file; do [ ! -e "$file" ] || printf '%s\0' "$file"; done
}
