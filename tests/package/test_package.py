"""The contents of the .deb, read from the file itself: nothing is installed and no root is needed."""

import filecmp
import os
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from needs import PACKAGE

pytestmark = pytest.mark.needs("package")

CHANGELOG = Path(__file__).parents[2] / "debian/changelog"
ENVIRONMENT = "./opt/citadel/env/"
SETTINGS = {"citadel-llm"} | {
    f"citadel-llm-{name}" for name in ("mixtral-8x7b", "hermes-2", "openchat-3.5", "phi-3-mini", "test")
}


def dpkg_deb(*arguments: str) -> str:
    return subprocess.run(["dpkg-deb", *arguments], capture_output=True, text=True, check=True).stdout


class Content(NamedTuple):
    """Every member of the package, and the first eight bytes of each bytecode file."""

    members: dict[str, tarfile.TarInfo]
    heads: dict[str, bytes]


@pytest.fixture(scope="module")
def content() -> Content:
    found = Content({}, {})
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", PACKAGE], stdout=subprocess.PIPE) as process:
        assert process.stdout
        with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
            for member in archive:
                found.members[member.name] = member
                if member.name.endswith(".pyc") and (file := archive.extractfile(member)):
                    found.heads[member.name] = file.read(8)
        process.stdout.read()
    return found


@pytest.fixture(scope="module")
def members(content: Content) -> dict[str, tarfile.TarInfo]:
    return content.members


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The unpacked package without third-party modules and bytecode."""
    directory = tmp_path_factory.mktemp("unpacked")
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", PACKAGE], stdout=subprocess.PIPE) as process:
        keep = ["--exclude=./opt/citadel/env/lib/python3*/site-packages/[!h]*", "--exclude=*.pyc"]
        subprocess.run(["tar", "-x", "-C", directory, *keep], stdin=process.stdout, check=True)
    yield directory


def test_package_has_expected_name_version_and_size() -> None:
    assert dpkg_deb("--field", str(PACKAGE), "Package").strip() == "citadel-llm"
    name, version = CHANGELOG.read_text(encoding="utf-8").split()[:2]
    assert name == "citadel-llm"
    assert dpkg_deb("--field", str(PACKAGE), "Version").strip() == f"{version.strip('()')}+cpu"
    size = PACKAGE.stat().st_size
    print(f"package: {size / 1e6:.0f} MB")
    assert size <= 600e6  # the contract's bound


def test_depends_lists_python_and_required_libraries() -> None:
    depends = dpkg_deb("--field", str(PACKAGE), "Depends")
    assert re.search(r"\bpython3\.1[1-3](,|$)", depends)
    for library in ("libnuma1", "libstdc++6", "libgcc-s1", "zlib1g", "systemd (>= 252)"):
        assert library in depends


def test_only_settings_files_are_conffiles() -> None:
    conffiles = dpkg_deb("--info", str(PACKAGE), "conffiles").split()
    assert set(conffiles) == {f"/etc/default/{name}" for name in SETTINGS} | {"/etc/logrotate.d/citadel-llm"}


def test_all_files_are_owned_and_writable_by_root_only(members: dict[str, tarfile.TarInfo]) -> None:
    for name, member in members.items():
        assert (member.uname, member.gname) == ("root", "root"), name
        assert member.issym() or not member.mode & 0o022, name
        assert not member.mode & 0o6000, name


def test_package_contains_the_specified_paths(members: dict[str, tarfile.TarInfo]) -> None:
    link = members["./opt/citadel/config/services/citadel-llm@.service"]
    assert link.issym() and link.linkname == "/lib/systemd/system/citadel-llm@.service"
    for unit in ("citadel-llm@.service", "citadel-llm.target", "citadel-llm.slice"):
        assert f"./lib/systemd/system/{unit}" in members
    assert members["./lib/systemd/system-generators/citadel-llm-generator"].mode == 0o755
    assert not [name for name in members if name.startswith("./run/") or name.startswith("./var/")]


def test_every_module_has_unchecked_hash_bytecode(content: Content) -> None:
    """PEP 552 flags: hash-based (1), and not checked against the source (2 is not set)."""
    sources = [name for name in content.members if name.startswith(ENVIRONMENT + "lib/") and name.endswith(".py")]
    assert len(sources) > 10_000
    flags = {name: int.from_bytes(head[4:8], "little") for name, head in content.heads.items()}
    assert set(flags.values()) == {1}
    for source in sources:
        if source.endswith("/py312_intrinsics.py"):
            continue  # syntax of a later Python
        folder, file = source.rsplit("/", 1)
        compiled = (f"{folder}/__pycache__/{file[:-3]}.cpython-3{minor}.pyc" for minor in (11, 12, 13))
        assert any(name in flags for name in compiled), source


def test_unused_modules_and_files_are_left_out(members: dict[str, tarfile.TarInfo]) -> None:
    for unused in ("triton", "torchvision", "torchaudio", "torchcodec", "cv2", "dns", "pip"):
        assert not [name for name in members if re.search(rf"/site-packages/{unused}(/|-)", name)], unused
    assert not [name for name in members if name.endswith((".a", ".pyx", ".pyi", ".h", ".c", ".cpp"))]
    # No empty directory and no bytecode without its source remains.
    gone = r"/pycountry/locales|/sympy/physics(/|$)|/transformers/models/.*/modular_"
    assert not [name for name in members if re.search(gone, name)]


def test_libraries_are_stripped(tmp_path: Path) -> None:
    names = [f"{ENVIRONMENT}lib/python3*/site-packages/{name}" for name in ("vllm/_C*.so", "torch/lib/libtorch_cpu.so")]
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", PACKAGE], stdout=subprocess.PIPE) as process:
        subprocess.run(["tar", "-x", "-C", tmp_path, "--wildcards", *names], stdin=process.stdout, check=True)
    libraries = list(tmp_path.rglob("*.so"))
    assert len(libraries) >= 3
    for library in libraries:
        sections = subprocess.run(["readelf", "-SW", library], capture_output=True, text=True, check=True).stdout
        assert ".dynsym" in sections and ".symtab" not in sections, library


def test_generator_and_library_modules_are_identical(unpacked: Path) -> None:
    (library,) = (unpacked / "opt/citadel/env/lib").glob("python3*/site-packages/hxp_enterprise_llm")
    generator = unpacked / "usr/lib/citadel-llm/hxp_enterprise_llm"
    modules = [file.relative_to(generator) for file in generator.rglob("*.py")]
    assert Path("settings/keys.py") in modules
    assert filecmp.cmpfiles(library, generator, [str(module) for module in modules], shallow=False)[0] == [
        str(m) for m in modules
    ]


def test_recorded_tables_match_the_packaged_vllm(unpacked: Path) -> None:
    """Unit tests read the tables of the checkout, the package those that its build has extracted."""
    (packaged,) = (unpacked / "opt/citadel/env/lib").glob("python3*/site-packages/hxp_enterprise_llm/engine")
    recorded = Path(__file__).parents[2] / "hxp_enterprise_llm/engine"
    for table in ("vllm_flags.json", "vllm_variables.json", "vllm_architectures.json"):
        assert (packaged / table).read_text() == (recorded / table).read_text(), f"copy {table} from the package"


def test_package_contains_no_build_path(unpacked: Path) -> None:
    build = os.environ.get("CITADEL_BUILD_CACHE", "/var/cache/citadel-llm-build") + "/build"
    found = subprocess.run(["grep", "-rlF", build, unpacked], capture_output=True, text=True, check=False)
    assert not found.stdout


def test_tiny_model_is_complete_and_world_readable(members: dict[str, tarfile.TarInfo]) -> None:
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        assert members[f"./usr/share/citadel-llm/models/test/{file}"].mode == 0o644
