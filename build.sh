#!/usr/bin/env bash
# Builds, demonstrates and tests citadel-llm. Each verb is a file in packaging/.
set -euo pipefail
cd "$(dirname "$0")"
# Other users must be able to read what is built and what goes to test machines, whatever mask the caller has.
umask 022
# Continuous integration may run this with standard input closed; the next file that is opened would take its place.
{ : <&0; } 2>/dev/null || exec </dev/null

usage() {
    cat <<'TEXT'
Usage: ./build.sh [--flavour cpu] [VERB]

  deb      build dist/citadel-llm_<version>_amd64.deb (the default)
  demo     boot a throwaway Debian, install the package, serve a real model and ask it questions
  model    make the chat model of the demo, as a directory in dist/
  test     run all tests, or some: ./build.sh test unit, or any arguments of pytest
  bench    compare with plain vllm serve; writes bench/results.json and docs/performance.md
  soak     run three instances for two hours with a fault every minute; writes docs/faults.md (--hours N)
  lock     resolve requirements/*.in into lock files with hashes
  clean    remove dist/ and unfinished builds from the cache

Environment:
  CITADEL_VERSION=…         version of the package (default: the version in debian/changelog)
  CITADEL_BUILD_CACHE=DIR   wheels and base trees (default: /var/cache/citadel-llm-build)
  CITADEL_TORCH_INDEX=URL   package index with PyTorch's CPU build; empty for none. Default: PyTorch's own,
                            unless pip is configured with find-links, index-url or extra-index-url
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
demo | model | test | bench | soak | lock | clean)
    . packaging/deb.sh
    # shellcheck source=/dev/null
    . "packaging/$verb.sh"
    "$verb" "$@"
    ;;
-h | --help | help) usage ;;
*)
    usage >&2
    fail "unknown verb: $verb" 2
    ;;
esac
