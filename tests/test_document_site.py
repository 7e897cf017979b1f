"""The site of the documents: it is built without a warning, has every page, and asks nobody else for anything."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from documents import OTHERS, PAGES, ROOT

LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "link": "href"}


def in_nav() -> list[str]:
    def pages(item) -> list[str]:
        if isinstance(item, str):
            return [item]
        return [page for part in (item.values() if isinstance(item, dict) else item) for page in pages(part)]

    return pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site. Whoever wanted the network would find a proxy that is not there."""
    folder = tmp_path_factory.mktemp("site")
    nowhere = "http://127.0.0.1:9"
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "http_proxy": nowhere, "https_proxy": nowhere}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


class Page(HTMLParser):
    """What a page has its reader's browser load, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)

    def handle_starttag(self, tag, attrs):
        address = dict(attrs).get(LOADS.get(tag, ""))
        if address:
            self.loaded.append(address)


def test_each_page_of_the_documents_is_in_the_navigation_once():
    nav = in_nav()
    assert len(nav) == len(set(nav))
    outside = [page for page in nav if page.startswith("project/")]
    assert len(outside) == len(OTHERS)
    assert sorted(page for page in nav if page not in outside) == sorted(p.removeprefix("docs/") for p in PAGES)


def test_each_page_of_the_navigation_is_built_and_leads_to_the_others(site):
    for page in in_nav():
        built = Page(site / page.replace(".md", ".html"))
        assert re.search(r"<h1[^>]*>.+?</h1>", built.html, flags=re.DOTALL), page
        for other in in_nav():
            if other != page:
                address = os.path.relpath(other.replace(".md", ".html"), Path(page).parent)
                assert f'href="{address}"' in built.html, (page, other)


def test_nothing_is_loaded_from_elsewhere(site):
    pages = [Page(path) for path in site.rglob("*.html")]
    assert len(pages) > len(PAGES)
    for page in pages:
        assert page.loaded
        for address in page.loaded:
            assert not re.match(r"(\w+:)?//", address), address
        assert 'class="mermaid"' not in page.html  # the theme would fetch what draws it
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_names_are_documented_and_roles_of_docstrings_are_not_shown(site):
    api = Page(site / "api" / "gns.html").html
    import gns

    for name in gns.__all__:
        assert f'id="gns.{name}"' in api or f'id="gns.errors.{name}"' in api, name
    for path in (site / "api").glob("*.html"):
        assert not re.search(r":(class|func|meth|mod|data|attr):<code", path.read_text(encoding="utf-8")), path
