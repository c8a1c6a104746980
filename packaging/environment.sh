#!/bin/sh
# Make the staged environment fit to ship: leave out what never runs, compile the rest, prove that it imports.
# Usage: environment.sh STAGED FINAL BUILD_PATH LEFT_OUT
#   STAGED is the environment below debian/citadel-llm, FINAL where it will be, BUILD_PATH what must not be in it,
#   LEFT_OUT a list of what its libraries can do without.
set -eu
staged=$1 final=$2 build_path=$3 left_out=$4
here=$(dirname "$0")
packages=$(echo "$staged"/lib/python3*/site-packages)
export PYTHONDONTWRITEBYTECODE=1

say() { echo "environment: $*"; }

prove() {
    # The directory is not the caller's home: libraries look there for settings.
    env VLLM_TARGET_DEVICE=cpu HOME="$proofs" "$staged/bin/python" -I "$here/import_proof.py" "$proofs/$1"
}

say "as installed: $(du -sm "$staged" | cut -f1) MB"
say "importing every module of the engine, as installed"
proofs=$(mktemp -d)
trap 'rm -rf "$proofs"' EXIT
prove before

# Building C++ extensions, and tests that wheels bring along. torch.compile on a GPU host needs torch/include, a CPU
# instance runs eager.
rm -rf "$packages"/torch/include "$packages"/torch/share "$packages"/torch/test
find "$packages"/torch/bin -type f ! -name torch_shm_manager -delete
find "$packages" -depth -type d \( -name tests -o -name test \) \
    -not -path '*/torch/*' -not -path '*/vllm/*' -not -path '*/transformers/*' -not -path '*/xgrammar/*' \
    -exec rm -rf {} +
find "$packages" -type f \( -name .gitignore -o -name .DS_Store -o -name '*.a' -o -name '*.lib' -o -name '*.pxd' -o -name '*.pyx' \) -delete
# numba's other two threading layers, which need libraries that no package here brings; its own workqueue stays.
rm -f "$packages"/numba/np/ufunc/omppool.*.so "$packages"/numba/np/ufunc/tbbpool.*.so
# The service installs nothing, so nothing of pip is needed.
rm -rf "$packages"/pip "$packages"/pip-*.dist-info "$staged"/bin/pip* "$staged"/include "$staged"/share
# Where the project was built from is nobody's business, and differs between builds.
rm -f "$packages"/hxp_enterprise_llm-*.dist-info/direct_url.json
sed -i '/^command = /d' "$staged/pyvenv.cfg"
rm -f "$staged"/bin/activate.* "$staged"/bin/Activate.ps1
find "$staged" -name __pycache__ -prune -exec rm -rf {} +

"$staged/bin/python" "$here/distributions.py" "$packages"

# Unchecked: importing compares nothing with the source, and no import ever writes; the tree is root's alone.
# py312_intrinsics: syntax of a later Python, which torch's own tests load by name.
say "compiling"
"$staged/bin/python" -m compileall -q -j 0 --invalidation-mode unchecked-hash -x /py312_intrinsics \
    -s "$staged" -p "$final" "$staged/lib"

say "trimming, and importing them again"
"$staged/bin/python" "$here/left_out.py" "$packages" "$left_out"
"$staged/bin/python" "$here/strip_symbols.py" "$staged"
prove after
if ! diff "$proofs/before" "$proofs/after"; then
    echo "environment: these modules are imported no more; see $left_out" >&2
    exit 1
fi
"$staged/bin/python" "$here/distributions.py" "$packages"

# Wheels mark libraries and modules as programs; only what lies in a bin directory is one.
find "$staged" -type f ! -path '*/bin/*' -exec chmod 0644 {} +

if found=$(grep -rlF "$build_path" "$staged"); then
    echo "environment: these files contain the build path $build_path:" >&2
    echo "$found" >&2
    exit 1
fi
say "as shipped: $(du -sm "$staged" | cut -f1) MB"
