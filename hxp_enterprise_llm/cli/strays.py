"""Files that look like the settings of an instance and can be none, for what they are called."""

from pathlib import Path

from hxp_enterprise_llm.settings.grammar import printable
from hxp_enterprise_llm.settings.keys import INSTANCE_NAME
from hxp_enterprise_llm.settings.values import DIRECTORY, PREFIX

RULE = "a name has up to 64 letters, digits, . _ and -, a letter or digit first"


def warnings(root: str = "/") -> list[str]:
    """A sentence for each such file; none for what dpkg and editors leave behind, which is no mistake."""
    folder = Path(root, DIRECTORY)
    names = sorted(file.name.removeprefix(PREFIX) for file in folder.glob(f"{PREFIX}*"))
    return [
        f"'{printable(str(folder / (PREFIX + name)))}' is ignored, '{printable(name)}' is not an instance name: {RULE}"
        for name in names
        # The suffixes of dpkg and of most editors make good names, which is_instance_name refuses on purpose.
        if not INSTANCE_NAME.fullmatch(name.removesuffix("~"))
    ]
