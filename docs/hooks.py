"""What makes Markdown that reads well on a code host a site, too: pages from outside ``docs``, and links to them."""

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
# Pages of the site that are files outside docs, as they stand.
OUTSIDE = {
    "README.md": "project/readme.md",
    "gns/pretrained/README.md": "project/policy.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
}
_TARGETS = re.compile(r'(?P<before>\]\(|<img src=")(?P<path>[^)#":\s]+)(?P<after>[^)"]*[)"])')
_ROLES = re.compile(r":(?:class|func|meth|mod|data|attr):(<code>)~?")
_CODE_FOLLOWS = re.compile(r"::(?=</p>\s*<(?:pre|div class=\"highlight\"))")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside ``docs``."""
    for source, page in OUTSIDE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links lead where the site has what the repository has elsewhere."""
    return with_links_of_the_site(markdown, page.file.src_uri)


def on_page_content(html: str, **_: Any) -> str:
    """Show docstrings as Markdown: of a role, such as ``:class:`gns.GNSPolicy```, the name; one colon before code."""
    return _CODE_FOLLOWS.sub(":", _ROLES.sub(r"\1", html))


def with_links_of_the_site(markdown: str, uri: str) -> str:
    """Return a page whose links are relative to its place in the site.

    :param markdown: its text, whose links are relative to its place in the repository
    :param uri: its place in the site
    """
    source = {page: source for source, page in OUTSIDE.items()}.get(uri, f"docs/{uri}")
    here = PurePosixPath(uri).parent.as_posix()

    def moved(match: re.Match[str]) -> str:
        target = normpath((PurePosixPath(source).parent / match["path"]).as_posix())
        place = OUTSIDE.get(target) or target.removeprefix("docs/")
        if not (target in OUTSIDE or target.startswith("docs/")):
            return match[0]
        return f"{match['before']}{relpath(place, here)}{match['after']}"

    return _TARGETS.sub(moved, markdown)
