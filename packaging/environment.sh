#!/bin/sh
# Prepare the staged environment for the package: remove unused files, compile the others, and prove that it imports.
# Usage: environment.sh STAGED FINAL BUILD_PATH LEFT_OUT
#   STAGED is the environment below debian/citadel-llm, FINAL its place on the host. No file may contain BUILD_PATH.
#   LEFT_OUT lists files that the libraries do not need.
set -eu
staged=$1 final=$2 build_path=$3 left_out=$4
here=$(dirname "$0")
packages=$(echo "$staged"/lib/python3*/site-packages)
export PYTHONDONTWRITEBYTECODE=1

say() { echo "environment: $*"; }

prove() {
    # Not the caller's home directory: libraries read settings there.
    env VLLM_TARGET_DEVICE=cpu HOME="$proofs" "$staged/bin/python" -I "$here/import_proof.py" "$proofs/$1"
}

say "as installed: $(du -sm "$staged" | cut -f1) MB"
say "importing every module of the engine, as installed"
proofs=$(mktemp -d)
trap 'rm -rf "$proofs"' EXIT
prove before

# Headers for C++ extensions, and tests in wheels. torch.compile on a GPU host would need torch/include; CPU instances
# run eagerly.
rm -rf "$packages"/torch/include "$packages"/torch/share "$packages"/torch/test
find "$packages"/torch/bin -type f ! -name torch_shm_manager -delete
find "$packages" -depth -type d \( -name tests -o -name test \) \
    -not -path '*/torch/*' -not -path '*/vllm/*' -not -path '*/transformers/*' -not -path '*/xgrammar/*' \
    -exec rm -rf {} +
find "$packages" -type f \( -name .gitignore -o -name .DS_Store -o -name '*.a' -o -name '*.lib' -o -name '*.pxd' -o -name '*.pyx' \) -delete
# Two of numba's threading layers need libraries that no package here has; its own layer, workqueue, stays.
rm -f "$packages"/numba/np/ufunc/omppool.*.so "$packages"/numba/np/ufunc/tbbpool.*.so
# The service installs nothing and needs no pip.
rm -rf "$packages"/pip "$packages"/pip-*.dist-info "$staged"/bin/pip* "$staged"/include "$staged"/share
# The build path is private, and differs between builds.
rm -f "$packages"/hxp_enterprise_llm-*.dist-info/direct_url.json
sed -i '/^command = /d' "$staged/pyvenv.cfg"
rm -f "$staged"/bin/activate.* "$staged"/bin/Activate.ps1
find "$staged" -name __pycache__ -prune -exec rm -rf {} +

"$staged/bin/python" "$here/distributions.py" "$packages"

# unchecked-hash: an import neither compares with the source nor writes anything; only root can change the tree.
# py312_intrinsics has the syntax of a later Python; only torch's tests load it.
say "compiling"
"$staged/bin/python" -m compileall -q -j 0 --invalidation-mode unchecked-hash -x /py312_intrinsics \
    -s "$staged" -p "$final" "$staged/lib"

say "trimming, and importing every module again"
"$staged/bin/python" "$here/left_out.py" "$packages" "$left_out"
"$staged/bin/python" "$here/strip_symbols.py" "$staged"
prove after
if ! diff "$proofs/before" "$proofs/after"; then
    echo "environment: these modules can no longer be imported; see $left_out" >&2
    exit 1
fi
"$staged/bin/python" "$here/distributions.py" "$packages"

# Wheels mark libraries and modules as executable; programs are in bin directories only.
find "$staged" -type f ! -path '*/bin/*' -exec chmod 0644 {} +

if found=$(grep -rlF "$build_path" "$staged"); then
    echo "environment: these files contain the build path $build_path:" >&2
    echo "$found" >&2
    exit 1
fi
say "as shipped: $(du -sm "$staged" | cut -f1) MB"
