"""The documents, and what of them can be run: blocks of Python, files that a page has its reader write, commands."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OTHERS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "gns/pretrained/README.md")
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
DOCUMENTS = [*OTHERS, *PAGES]
_FENCED = re.compile(r"^```(?P<kind>[^\n]*)\n(?P<text>.*?)^```", flags=re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`]+)`")
_PROGRAMS = ("python ", "make ", "pytest ", "train_agent.py", "evaluate.py")


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def python_blocks(text: str) -> list[str]:
    return [block["text"] for block in _FENCED.finditer(text) if block["kind"] == "python"]


def files(text: str) -> list[tuple[str, str]]:
    """Path and content of each block that is a file to be written."""
    found = [(re.search(r'title="([^"]+)"', block["kind"]), block["text"]) for block in _FENCED.finditer(text)]
    return [(title[1], content) for title, content in found if title]


def commands(text: str) -> list[list[str]]:
    """Words of each command in blocks of shell lines and within sentences, without variables set before it."""
    lines = []
    for block in _FENCED.finditer(text):
        if block["kind"] in ("", "sh"):
            lines += block["text"].replace("\\\n", " ").splitlines()
    for inline in _INLINE.findall(_FENCED.sub("", text)):
        line = re.sub(r"^(\w+=\S+ )+", "", " ".join(inline.split()))
        lines += [line] if line.startswith(_PROGRAMS) else []
    split = [shlex.split(line, comments=True) for line in lines]
    return [words for words in split if words and not re.match(r"[A-Z_]+=", words[0])]
