"""Files in /etc/default that look like settings of an instance, but whose names are not names of instances."""

from pathlib import Path

from hxp_enterprise_llm.settings.grammar import printable
from hxp_enterprise_llm.settings.keys import INSTANCE_NAME
from hxp_enterprise_llm.settings.values import DIRECTORY, PREFIX

RULE = "a name has up to 64 letters, digits, . _ and -, a letter or digit first"


def warnings(root: str = "/") -> list[str]:
    """A warning for each such file, except for files that dpkg and editors leave behind."""
    folder = Path(root, DIRECTORY)
    names = sorted(file.name.removeprefix(PREFIX) for file in folder.glob(f"{PREFIX}*"))
    return [
        f"'{printable(str(folder / (PREFIX + name)))}' is ignored, '{printable(name)}' is not an instance name: {RULE}"
        for name in names
        # Names with suffixes of dpkg and editors match the pattern, but is_instance_name refuses them.
        if not INSTANCE_NAME.fullmatch(name.removesuffix("~"))
    ]
