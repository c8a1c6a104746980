#!/usr/bin/env bash
# The one door to building, showing and testing citadel-llm.
set -euo pipefail
cd "$(dirname "$0")"

usage() {
    cat <<'TEXT'
Usage: ./build.sh [VERB]

  deb      build dist/citadel-llm_<version>_amd64.deb (the default)
  demo     boot a throwaway Debian, install the package there, serve a real model and ask it
  test     all tests; ./build.sh test unit, or any of pytest's arguments, for some
  lock     resolve requirements/*.in into hash locks
  clean    remove dist/ and what the cache holds of unfinished builds

Environment:
  FLAVOUR=cpu               what to build for
  CITADEL_VERSION=…         another version than that of debian/changelog
  CITADEL_BUILD_CACHE=DIR   wheels and base trees, /var/cache/citadel-llm-build if unset
  PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL
                            a folder or an index that has torch's CPU build
TEXT
}

. packaging/common.sh
verb=${1:-deb}
[ $# = 0 ] || shift
case $verb in
deb)
    . packaging/deb.sh
    build_deb
    ;;
demo | test | lock | clean)
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
