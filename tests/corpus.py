"""Lines for the grammar of settings files: plain, odd and hostile. `lines()` returns more than 300, always the same."""

import itertools
import string

from hypothesis import strategies as st

PLAIN = [
    "", "1", "0.5", "yes", "/srv/models/x", "org/name-7B", "a,b", "a:b", "a=b", "a==b", "user@host", "100%", "%i", "%%",
    "+1", "-1", "--flag", "a^b", "_", ".", "..", "../x", "a/../b", "é", "日本", "\u00a0", "\u200b", "\u2028", "\ufeffx", "\x7f",
    "\x01", "\x1b[31m", "\t", "a\tb", "\x0b", "\x0c", "a\x00b", "~", "~root", "a:~", "*", "?", "[a]", "{a,b}", "!", "!!", "a!b",
    "&", "a&b", "|", ";", "a;b", "<", ">", ">/tmp/x", "(", ")", "(a)", "#", "#a", "a#b", "a #b", "a # b", " #", "$", "$$", "$HOME",
    "${HOME}", "${X:-y}", "$(id)", "`id`", "\\", "a\\", "\\n", "a\\ b", "a\\tb", "\\x41", "\\101", "'", '"', "''", '""', "a'b", 'a"b',
    "two words", "  lead", "trail  ", "a  b", "{\"a\": 1}", "[1, 2]", "x" * 300, "a\\\\b", "\\'", '\\"', "%n\\n", "4\\nExecStartPre=/bin/sh",
]  # fmt: skip
WRAPPED = ["{}", "'{}'", '"{}"']
WHOLE = [
    "", " ", "\t", "#", "# comment", "  # indented", "#\\", "# joined \\", ";", "; old comment", "{key}", "{key} ", "{key}=1\r",
    "{key} =1", "{key}= 1", "{key} = 1", " {key}=1", "\t{key}=1 ", "export {key}=1", "export\t{key}=1", "set {key}=1", "={key}",
    "=1", "1{key}=1", "{key}-x=1", "{key}.x=1", "é{key}=1", "{key}+=1", "{key}[0]=1", "{key}=1;", "{key}=1 {key}2=2", "{key}=1 && id",
    "{key}='a'b", "{key}='a''b'", "{key}='a' 'b'", "{key}=\"a\"b", "{key}=a'b'", "{key}='a'#c", "{key}='a' #c", "{key}='a' # c",
    "{key}='a", "{key}=\"a", "{key}=a'", "{key}='a\\'", "{key}='a\\'b'", "{key}=\"a\\\"b\"", "{key}=$'a\\n'", "[Service]", "ExecStart=/bin/sh -c id\\",
    "{key}=\"`id`\"", "{key}='`id`'", "\ufeff{key}=1", "{key}=1\\", "if true; then {key}=1; fi", "{key}=1\x00", ". /etc/passwd", "source x", "{key}=<(id)",
]  # fmt: skip


def lines() -> list[str]:
    """Lines with `{key}` in place of the key; braces in values are literal."""
    made = [f"{{key}}={wrap.replace('{}', value)}" for value, wrap in itertools.product(PLAIN, WRAPPED)]
    return list(dict.fromkeys(made + WHOLE))


# Characters that all readers accept, characters that readers treat differently, and any other.
_LETTERS = st.one_of(
    st.sampled_from(string.ascii_letters + string.digits + "_./:@%+,=^-"),
    st.sampled_from("'\"\\$`#; \t*?~!&|<>(){}[]"),
    st.characters(codec="utf-8"),
)
_VALUES = st.text(alphabet=_LETTERS, max_size=30)


def written_lines() -> st.SearchStrategy[str]:
    """Lines that set A: a value unquoted, in single or double quotes, between blanks, or as adjacent pieces."""
    safe = st.text(alphabet=st.sampled_from(string.printable[:94].translate({36: None, 92: None, 96: None}) + " é日"))
    quoted = [st.builds(f"{quote}{{}}{quote}".format, text) for quote in "'\"" for text in (_VALUES, safe)]
    value = st.one_of(_VALUES, safe, *quoted, *quoted, st.builds("{}{}".format, quoted[0], _VALUES))
    blank = st.sampled_from(["", "", "", " ", "\t", "  "])
    return st.builds("{}A={}{}".format, blank, value, blank)
