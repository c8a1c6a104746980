# shellcheck shell=bash
# Functions that the verbs of build.sh share. The working directory is the root of the project.

# Wheels, base trees and tools: made once and kept between runs, outside the checkout.
CACHE=${CITADEL_BUILD_CACHE:-/var/cache/citadel-llm-build}
FLAVOUR=${FLAVOUR:-cpu}
# What tests/machine.py needs to boot a Debian.
MACHINE_PACKAGES=(systemd-container debootstrap debian-archive-keyring)
started=$SECONDS

say() { printf '\033[1m[%3ds]\033[0m %s\n' $((SECONDS - started)) "$*" >&2; }

fail() {
    printf 'build.sh: %s\n' "$1" >&2
    exit "${2:-1}"
}

require_root() {
    [ "$(id -u)" = 0 ] || fail "this verb needs root: run it with sudo, or in a root shell"
}

# install_packages NAME…: install missing packages from the distribution.
install_packages() {
    local missing=() name
    for name in "$@"; do
        dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null | grep -qx installed || missing+=("$name")
    done
    [ ${#missing[@]} = 0 ] && return
    say "installing ${missing[*]}"
    # On a new machine, the package lists are empty or old.
    if ! { apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -qy -o DPkg::Lock::Timeout=300 --no-install-recommends install "${missing[@]}"; } </dev/null >"$CACHE/apt.log" 2>&1; then
        tail -n 5 "$CACHE/apt.log" >&2
        fail "apt-get could not install ${missing[*]}; check the network. Full output: $CACHE/apt.log"
    fi
}

# unpack_package NAME: unpack a Debian package into $CACHE/debian/NAME; installing it would start its service here.
unpack_package() {
    local target=$CACHE/debian/$1
    [ -d "$target" ] && return
    say "fetching $1 (once)"
    rm -rf "$target.part"
    mkdir -p "$target.part"
    if ! { apt-get -q update && env -C "$target.part" apt-get -q download "$1"; } >"$CACHE/apt.log" 2>&1; then
        tail -n 5 "$CACHE/apt.log" >&2
        fail "apt-get could not download $1; check the network. Full output: $CACHE/apt.log"
    fi
    dpkg-deb -x "$target.part"/*.deb "$target.part"
    mv "$target.part" "$target"
}

# need_space DIRECTORY MEGABYTES WHAT
need_space() {
    local free
    free=$(df --output=avail -m "$1" | tail -n 1)
    [ "$free" -ge "$2" ] || fail "$3 needs $2 MB in $1, which has $free MB free; make room, or set CITADEL_BUILD_CACHE"
}

# The version of the package, with the flavour: 1.1.0-1+cpu
package_version() {
    echo "${CITADEL_VERSION:-$(dpkg-parsechangelog -S Version)+$FLAVOUR}"
}

megabytes() { echo $(($(stat -c %s "$1") / 1000000)); }

# shown LOG SED COMMAND…: run a long command, write its output to LOG, and show the lines that SED selects.
shown() {
    local log=$1 filter=$2
    shift 2
    "$@" 2>&1 | tee "$log" | sed -un "$filter" >&2
    return "${PIPESTATUS[0]}"
}

# Every file that git tracks or would add, NUL-separated: the sources of a build. Without git's data (an unpacked
# archive), every file except those that .gitignore names.
source_files() {
    {
        # The checkout may belong to another user than root.
        if [ -e .git ]; then
            git -c safe.directory='*' ls-files -z --cached --others --exclude-standard
        else
            find . \( -path ./dist -o -path ./.build -o -name __pycache__ -o -name '*.egg-info' -o -name '.*_cache' \
                -o -name .hypothesis \) -prune -o \( -type f -o -type l \) -printf '%P\0'
        fi
    } | while IFS= read -r -d '' file; do [ ! -e "$file" ] || printf '%s\0' "$file"; done
}
