"""What CONTRIBUTING.md says is enough to touch. That it is enough, a test of the documents shows: it adds a task and a
controller, by the files of their pages, to a copy of the project and runs them."""

import re

import pytest
from documents import files, text_of

ROWS = {
    name: (re.findall(r"`([^`]+)`", paths), re.findall(r"`([^`]+)`", config))
    for name, paths, config in re.findall(r"^\| an? ([\w ]+) \| (.+) \| (.*) ?\|$", text_of("CONTRIBUTING.md"), re.M)
}


def test_each_takes_two_files_and_one_config_at_most():
    assert {"feature", "action mode", "reward", "task", "controller"} <= set(ROWS)
    assert all(1 <= len(paths) <= 2 and len(config) <= 1 for paths, config in ROWS.values())


@pytest.mark.parametrize(("name", "page"), [("task", "docs/add_a_task.md"), ("controller", "docs/add_a_baseline.md")])
def test_the_page_writes_new_files_where_the_list_says(name, page, root):
    paths, config = ROWS[name]
    new = {re.sub(r"[\w-]+(?=\.\w+$)", "NEW", path) for path, _ in files(text_of(page))}
    assert new == {path for path in (*paths, *config) if "NEW" in path}
    assert not any((root / path).exists() for path, _ in files(text_of(page)))
