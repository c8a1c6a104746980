#!/usr/bin/env bash
# The one door to building, showing and testing citadel-llm.
set -euo pipefail
cd "$(dirname "$0")"
# What is built and what a test machine is given must be readable by others, also under a stricter mask of the caller's.
umask 022

usage() {
    cat <<'TEXT'
Usage: ./build.sh [--flavour cpu] [VERB]

  deb      build dist/citadel-llm_<version>_amd64.deb (the default)
  demo     boot a throwaway Debian, install the package there, serve a real model and ask it
  model    the chat model of the demo, as a directory in dist/
  test     all tests; ./build.sh test unit, or any of pytest's arguments, for some
  bench    measure beside plain vllm serve; writes bench/results.json and docs/performance.md
  lock     resolve requirements/*.in into hash locks
  clean    remove dist/ and what the cache holds of unfinished builds

Environment:
  CITADEL_VERSION=…         another version than that of debian/changelog
  CITADEL_BUILD_CACHE=DIR   wheels and base trees, /var/cache/citadel-llm-build if unset
  PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL
                            a folder or an index that has torch's CPU build
TEXT
}

if [ "${1:-}" = --flavour ]; then
    [ $# -ge 2 ] || { usage >&2; exit 2; }
    FLAVOUR=$2
    shift 2
fi
. packaging/common.sh
verb=${1:-deb}
[ $# = 0 ] || shift
case $verb in
deb)
    . packaging/deb.sh
    build_deb
    ;;
demo | model | test | bench | lock | clean)
    . packaging/deb.sh
    # shellcheck source=/dev/null
    . "packaging/$verb.sh"
    "$verb" "$@"
    ;;
-h | --help | help) usage ;;
*)
    usage >&2
    fail "there is no verb $verb" 2
    ;;
esac
