"""The HTML report without a browser: what it says, that names cannot break it, and that it asks for nothing else."""

import base64
import hashlib
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from made_evaluation import ABOUT, evaluation_of, page, rows_of, small

import evaluate as evaluate_command
from agents.evaluation.comparison import compare
from agents.evaluation.transfer import transfer
from agents.reports import kinds
from agents.reports.html_report import FILE, PLOTTED_SETTINGS, transfer_map, write_html
from agents.reports.html_summary import sentences, standing_table
from agents.reports.html_tables import LISTED_RUNS, cost_table, failures_tables, results_table, wrong_runs
from agents.reports.kinds import chosen_reports
from agents.reports.plots import BOTTOM, LEFT, RIGHT, TOP, Axis, looks, loss_against_rate
from agents.reports.plots_over_time import rate_paths, training_losses
from gns import GNSPolicy
from gns.errors import InvalidSettingError, UnknownNameError

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></script><iframe src='http://evil.example'>",
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "&lt;b&gt; \u202e x",
]


class Parsed(HTMLParser):
    """Tags with their attributes, and the text between them, without scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.code = "", ""
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else self._inside

    def handle_endtag(self, tag):
        self._inside = "" if tag == self._inside else self._inside

    def handle_data(self, data):
        if self._inside:
            self.code += data
        else:
            self.text += data

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def test_hostile_names_of_anything_stay_text():
    rows = [row for number, name in enumerate(HOSTILE) for row in small(name, task=f"t{number}{name}", metric=name)]
    rows += rows_of(HOSTILE[0], 0.5, [math.inf], task=HOSTILE[1], updates=0)
    rows += rows_of("rex", 0.5, [1.0], task=HOSTILE[1])
    config = {"name": HOSTILE[0], HOSTILE[1]: HOSTILE[2]}
    evaluation = evaluation_of(rows)
    text = page(evaluation, HOSTILE, config=config, versions={HOSTILE[0]: HOSTILE[2]}, command=" ".join(HOSTILE))
    parsed, plain = Parsed(text), Parsed(page(evaluation_of(small())))
    assert {tag for tag, _ in parsed.tags} - {tag for tag, _ in plain.tags} <= {"select", "option"}
    assert len(parsed.named("script")) == len(parsed.named("style")) == 1 and parsed.code == plain.code
    for tag, attributes in parsed.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "style", "srcset")], tag
        assert all((value or "").startswith(("#", "data:,")) for name, value in attributes.items() if name == "href")
    for name in HOSTILE:
        assert name in parsed.text


def test_the_file_asks_for_nothing_and_its_policy_allows_nothing_but_its_own_script_and_style():
    text = page(evaluation_of(small()))
    (policy,) = (a["content"] for a in Parsed(text).named("meta") if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    for kind in ("script", "style"):
        (inside,) = re.findall(rf"<{kind}>(.*?)</{kind}>", text, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert rules.pop(f"{kind}-src") == f"'sha256-{digest}'"
    assert rules == {"default-src": "'none'", "img-src": "data:", "base-uri": "'none'", "form-action": "'none'"}
    assert not re.search(r"https?:|//[a-z]|url\(|@import", text)


def test_landmarks_captions_labels_and_descriptions_are_there():
    parsed = Parsed(page(evaluation_of(small() + small(task="wine"))))
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids)) and parsed.named("html") == [{"lang": "en"}]
    assert all(len(parsed.named(tag)) == 1 for tag in ("main", "header", "nav", "h1"))
    assert len(parsed.named("caption")) == len(parsed.named("table")) > 8
    assert all(attributes["scope"] in ("row", "col") for attributes in parsed.named("th"))
    pictures = [attributes for attributes in parsed.named("svg") if attributes.get("role") == "img"]
    assert len(pictures) == 8 and all(a["aria-label"] and a["aria-describedby"] in ids for a in pictures)
    for attributes in [*parsed.named("a"), *parsed.named("section"), *parsed.named("label")]:
        for name in ("href", "aria-labelledby", "for"):
            assert (attributes.get(name) or "#main").removeprefix("#") in ids


def test_the_summary_says_what_was_compared_and_who_won():
    evaluation = evaluation_of(small())
    said = sentences(evaluation, compare(evaluation), transfer(evaluation, {"policy": "digits"}))
    assert said[0] == (
        "3 controllers were run on digits with adam, for 100 updates, with 2 seeds each: 14 training runs."
    )
    assert said[1] == "rex from 0.1 has the lowest mean test loss, 1.0000 (95 % interval 0.9000 to 1.1000)."
    assert said[2] == (
        "policy, from 2 initial rates and with no tuning, has a mean test loss of 1.2500, 25.0% above the best tuned "
        "schedule's."
    )
    assert said[3] == "From its worst single initial rate, 1, it is 1.30 times the best tuned schedule's."
    assert "Against rex from 0.1" in said[4] and "+25.0%" in said[4] and said[4].endswith("worse.")
    assert "takes 1.0 times the budget in updates; one of a tuned controller 2.5 times" in said[5]
    assert said[6] == "0 runs failed and 1 diverged; there was 2 rollbacks in 2 runs."
    assert said[7].startswith("Each figure is a mean of only 2 runs")


def test_the_winner_is_not_a_policy_at_the_initial_rate_that_hindsight_picks():
    rows = [
        *rows_of("rex", 0.1, [1.0, 1.0]),
        *rows_of("policy", 0.01, [0.1, 0.1]),
        *rows_of("policy", 1.0, [3.0, 3.0]),
    ]
    lines = compare(evaluation_of(rows, ["rex"]))
    assert sentences(evaluation_of(rows, ["rex"]), lines, [])[1].startswith("rex from 0.1 has the lowest")
    better = [row | {"test_loss": row["test_loss"] * (0.2 if row["controller"] == "policy" else 1.0)} for row in rows]
    evaluation = evaluation_of(better, ["rex"])
    said = sentences(evaluation, compare(evaluation), [])
    assert said[1].startswith("policy, a mean over its initial rates, has the lowest mean test loss, 0.3100")
    assert said[2] == "Of what was tuned, rex from 0.1 is the best, with 1.0000 (95 % interval 1.0000 to 1.0000)."
    assert "69.0% below the best tuned" in said[3]


def test_over_several_settings_the_summary_counts():
    rows = small() + small(task="wine")
    close = [
        row | {"test_loss": 1.02} if row["controller"] == "policy" and row["task"] == "wine" else row for row in rows
    ]
    evaluation = evaluation_of(close)
    lines = compare(evaluation)
    said = sentences(evaluation, lines, transfer(evaluation, {"policy": "digits"}))
    assert "run on digits and wine with adam" in said[0]
    assert said[1] == "Over 2 settings (task, optimizer, budget), the lowest mean test loss was of rex in 2."
    assert "within 5% of it, in 1 of 2 settings" in said[2] and "1.020 at best, 1.135 in the median" in said[2]
    assert "1 on digits with adam, 100 updates, it is 1.30 times" in said[3]
    table = standing_table(lines)
    assert [[text for text, _ in row] for row in table.rows] == [
        ["digits, adam", "100", "rex", "1.0000", "1.250"],
        ["wine, adam", "100", "rex", "1.0000", "1.020"],
    ]


def test_where_all_diverged_nobody_won():
    rows = [*rows_of("rex", 0.1, [math.inf, math.inf]), *rows_of("policy", 0.1, [math.inf, math.inf])]
    evaluation = evaluation_of(rows, ["rex"])
    cells = transfer(evaluation, {"policy": "digits"})
    assert "No controller ended with a finite mean test loss." in sentences(evaluation, compare(evaluation), cells)
    text = page(evaluation)
    assert "diverged" in text and ">nan<" not in text.lower()


def test_without_schedules_and_with_one_seed_there_is_still_a_report():
    rows = [*rows_of("policy", 0.1, [1.0]), *rows_of("prodigy", 0.1, [0.9])]
    text = page(evaluation_of(rows, [], own=["prodigy"]))
    assert (
        "There is no tuned schedule with a finite loss to compare policy with." in text
        and "prodigy has the lowest mean test loss" in text
    )
    assert 'id="transfer"' not in text


def test_runs_that_went_wrong_are_counted_and_listed():
    rows = (
        small()
        + rows_of("cosine", 0.9, [math.inf, math.inf], updates=0)
        + rows_of("rex", 0.9, [1.0], test_loss=math.nan)
    )
    evaluation = evaluation_of(rows)
    assert list(wrong_runs(evaluation).what) == ["diverged", "failed", "failed", "diverged"]
    totals, listed = failures_tables(evaluation)
    assert [[text for text, _ in row] for row in totals.rows] == [
        ["rex", "digits, adam", "100", "7", "0", "2", "0.3", "0.9"],
        ["cosine", "digits, adam", "100", "6", "2", "0", "0.9", "0.9"],
    ]
    assert [row[2][0] for row in listed.rows] == ["diverged", "failed", "failed", "diverged"]
    assert failures_tables(evaluation_of(rows_of("rex", 0.1, [1.0, 2.0]))) == []
    many = evaluation_of(rows_of("rex", 0.1, [math.inf] * (LISTED_RUNS + 1)))
    assert len(failures_tables(many)[1].rows) == LISTED_RUNS and "first 200 of 201" in failures_tables(many)[1].caption


def test_tables_hold_the_figures_and_what_they_are_sorted_by():
    evaluation = evaluation_of(small())
    table = results_table("t", compare(evaluation))
    assert [row[0][0] for row in table.rows] == ["rex", "cosine", "policy", "policy", "policy"]
    assert table.rows[0][1:3] == [("0.1", "0.1"), ("1.0000", "1")] and table.rows[-1][1] == ("all", "nan")
    assert table.emphasis == {4}
    cost = {row[0][0]: [text for text, _ in row[1:]] for row in cost_table(evaluation, compare(evaluation)).rows}
    assert cost["rex"] == ["3.0", "3.0", "6", "600", "0", "0", "0.5", "0", "0"]
    assert cost["policy"][-2:] == ["2", "2"]


def test_losses_are_drawn_where_they_belong_and_what_is_off_the_plot_says_so():
    evaluation = evaluation_of([*small(), *rows_of("prodigy", 0.1, [1.5, 1.7])], own=["prodigy"])
    plot = loss_against_rate(evaluation, evaluation.settings[0], looks(evaluation))
    by_name = {series.look.name: series for series in plot.series}
    rex = by_name["rex"].marks
    assert [mark.outside for mark in rex] == [False, False, True] and "1 point above the plot" in plot.note
    assert rex[1].y > rex[0].y and rex[2].y == TOP + 7  # pixels count from the top
    assert rex[0].x < rex[1].x < rex[2].x and rex[0].bar[0] < rex[0].y < rex[0].bar[1] and rex[2].bar is None
    assert rex[1].text == "rex from 0.1: 1.0000 (95 % interval 0.9000 to 1.1000)" and "diverged" in rex[2].text
    assert all(LEFT <= mark.x <= RIGHT and TOP <= mark.y <= BOTTOM for s in plot.series for mark in s.marks)
    assert plot.levels[0][0] == rex[1].y and by_name["prodigy"].paths[0][0].startswith(f"M{LEFT} ")
    assert "policy: lowest 1.2000 from 0.01, highest 1.3000 from 1." in plot.text
    assert "prodigy ignores the initial rate: 1.6000." in plot.text


def test_rate_paths_are_geometric_means_over_the_seeds_that_still_run():
    evaluation = evaluation_of(small())
    shares = (0.0, 0.25, 0.5, 0.75)
    evaluation.paths[2:4] = [
        list(zip(shares, rates, strict=True)) for rates in ([0.1, 0.4, 0.4, 9], [0.1, 0.1, 0.1, 9])
    ]
    plot = rate_paths(evaluation, evaluation.settings[0], looks(evaluation))
    assert [text for text, _ in plot.figures.rows[0]] == ["rex", "0.1", "0.1", "0.1", "0.2", "0.2", "0.2"]
    evaluation.paths[3][1:] = [(share, math.nan) for share in shares[1:]]
    plot = rate_paths(evaluation, evaluation.settings[0], looks(evaluation))
    assert [text for text, _ in plot.figures.rows[0]] == ["rex", "0.1", "0.1", "0.1", "0.4", "0.4", "0.4"]
    assert {series.look.name: len(series.paths) for series in plot.series} == {"rex": 1, "cosine": 1, "policy": 2}
    assert [text for _, text in plot.series[-1].paths] == ["policy from 0.01", "policy from 1"]
    assert [row[1][0] for row in plot.figures.rows] == ["0.1", "0.3", "0.01", "1"]
    assert "rex: halfway the rate is 0.4." in plot.text


def test_training_losses_stand_below_the_rates_on_the_same_axis():
    evaluation = evaluation_of(small())
    evaluation.losses[2:4] = [[4.0, 2.0, 1.0, 1.0], [1.0, 2.0, 4.0, math.nan]]
    rates = rate_paths(evaluation, evaluation.settings[0], looks(evaluation))
    losses = training_losses(evaluation, evaluation.settings[0], looks(evaluation))
    assert losses.x_ticks == rates.x_ticks and losses.x_label == rates.x_label
    assert [series.look for series in losses.series] == [series.look for series in rates.series]
    assert [row[:2] for row in losses.figures.rows] == [row[:2] for row in rates.figures.rows]
    assert [text for text, _ in losses.figures.rows[0][2:5]] == ["2", "2", "2"]  # sqrt(4 * 1) first, and so on
    points = [re.findall(r"[\d.]+", path) for path, _ in losses.series[0].paths]
    assert len(points[0]) == 2 * 4 and all(TOP <= float(y) <= BOTTOM for y in points[0][1::2])
    assert "Training loss over progress" in page(evaluation)


def test_losses_of_runs_that_diverge_stay_inside_and_unknown_ones_are_not_drawn():
    evaluation = evaluation_of(small())
    evaluation.losses[2:4] = [[1.0, 1e30, math.inf, math.nan], [1.0, 1.0, 1.0, math.nan]]
    plot = training_losses(evaluation, evaluation.settings[0], looks(evaluation))
    (path, _), *_ = plot.series[0].paths
    heights = [float(y) for y in re.findall(r"[\d.]+", path)[1::2]]
    assert heights[1:] == [TOP, TOP] and plot.note.startswith("1 line along the top")
    assert "nan" not in path and "inf" not in path
    evaluation.losses.clear()
    assert training_losses(evaluation, evaluation.settings[0], looks(evaluation)) is None
    assert "Training loss over progress" not in page(evaluation)


@pytest.mark.parametrize(("low", "high"), [(1e-5, 0.1), (0.08, 0.3), (0.5, 0.52), (1e-9, 1e3), (2.0, 60.0)])
def test_ticks_are_few_and_inside(low, high):
    axis = Axis(low, high, LEFT, RIGHT)
    places = [place for place, _ in axis.ticks()]
    assert 2 <= len(places) <= 7 and places == sorted(places) and LEFT <= min(places) <= max(places) <= RIGHT
    for place, label in axis.ticks():
        assert place == axis.place(float(label))


def test_shades_of_transfer_grow_with_regret_and_stop_at_twice_the_loss():
    rows = []
    for task, loss in (("a", 0.4), ("b", 1.0), ("c", 1.2), ("d", 9.0), ("e", math.inf)):
        rows += rows_of("rex", 0.1, [1.0, 1.0], task=task) + rows_of("policy", 0.1, [loss, loss], task=task)
    evaluation = evaluation_of(rows, ["rex"])
    shown = transfer_map(transfer(evaluation, {"policy": "a, x"}))
    ((_, _, places),) = shown["rows"]
    assert [place["shade"] for place in places] == [-5, 0, 1, 5, 5]
    assert [place["home"] for place in places] == [True, False, False, False, False]
    assert places[3]["outcomes"] == ["100% far from the best"] and places[4]["regret"] == "diverged"
    assert transfer_map([]) is None


def test_a_large_evaluation_stays_below_5_mb_and_says_what_it_leaves_out(tmp_path, monkeypatch):
    names = ["constant", "step", "linear", "cosine", "exponential", "onecycle", "rex"]
    rng = np.random.default_rng(0)

    def size(settings: int) -> int:
        rows = []
        for task in (f"task_{place}" for place in range(settings)):
            for name in names:
                for k in range(8):
                    rows += rows_of(name, 1e-4 * 3.0**k, rng.uniform(0.1, 1.0, 1), task=task)
            for rate in np.geomspace(1e-5, 0.1, 9):
                rows += rows_of("policy", float(rate), rng.uniform(0.1, 1.0, 1), task=task)
        evaluation = evaluation_of(rows, names)
        evaluation.paths = [[(t / 100, float(x)) for t, x in enumerate(rng.uniform(0.1, 1, 100))] for _ in rows]
        evaluation.losses = [rng.uniform(0.1, 1, 100).tolist() for _ in rows]
        return write_html(tmp_path, evaluation, compare(evaluation), [], ABOUT).stat().st_size

    assert size(1) + (PLOTTED_SETTINGS - 1) * (size(2) - size(1)) < 4_000_000
    monkeypatch.setattr("agents.reports.html_report.PLOTTED_SETTINGS", 1)
    with_plots = size(3)
    text = (tmp_path / FILE).read_text(encoding="utf-8")
    assert text.count('role="img"') == 4 and "The last 2 settings have no plots here" in text
    assert size(4) - with_plots < 10_000


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, the definition of contrast ratio."""
    high, low = sorted([luminance(one), luminance(other)], reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_colours_have_the_contrast_of_wcag_aa_in_light_and_dark():
    style = (Path(write_html.__code__.co_filename).parent / "templates" / "report.css").read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{(.*?)\}", style, flags=re.DOTALL)
    for block in (light, dark):
        colours = dict(re.findall(r"--([a-z0-9]+): (#[0-9a-f]{6})", block))
        for ground in ("page", "panel"):
            for text in ("ink", "soft", "link"):
                assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
            for line in (f"c{number}" for number in range(8)):
                assert contrast(colours[line], colours[ground]) >= 3.0, (line, ground)
    shades = re.findall(r"\.h-?\d \{ background: (#\w+); color: (#\w+); \}", style)
    assert len(shades) == 11 and all(contrast(ground, ink) >= 4.5 for ground, ink in shades)


def test_reports_are_chosen_by_name():
    assert chosen_reports([]) == chosen_reports(None) == []
    assert chosen_reports("html") == chosen_reports(["html", "html"]) == ["html"]
    with pytest.raises(UnknownNameError, match=r"Unknown report 'htm'; expected one of: .*html.*Did you mean 'html'"):
        chosen_reports(["htm"])
    for wrong in (3, {"html": 1}):
        with pytest.raises(InvalidSettingError, match="expected a name or a list of names"):
            chosen_reports(wrong)


def test_an_unknown_report_ends_an_evaluation_before_any_run(tmp_path, monkeypatch, compose):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownNameError, match="report 'pdf'"):
        evaluate_command.run(compose("evaluate", "controller=[rex]", "report=[html,pdf]"))
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_the_report(tmp_path, monkeypatch, compose, capsys):
    monkeypatch.chdir(tmp_path)
    GNSPolicy().save_pretrained(tmp_path / "p")
    settings = ["policy=p", "seeds=1", "workers=0", "budgets=[20]", "widen=0", "grids.adam={lowest: 1e-2, count: 1}"]
    settings += ["initial_rates.adam={lowest: 1e-3, highest: 1e-3, count: 1}", "report=html", "name=x"]
    evaluate_command.run(compose("evaluate", "controller=[rex,policy]", *settings))
    text = (tmp_path / "outputs" / "x" / "report.html").read_text(encoding="utf-8")
    assert "report.html" in capsys.readouterr().out
    assert "2 controllers were run on digits_mlp" in text and "called from Python" in text and "seeds: 1" in text


def test_the_command_line_is_quoted_for_a_shell(monkeypatch):
    words = SimpleNamespace(overrides=SimpleNamespace(task=["name=x", "task=[digits_mlp]", "policy=a b"]))
    monkeypatch.setattr(kinds, "HydraConfig", SimpleNamespace(initialized=lambda: True, get=lambda: words))
    text = Parsed(page(evaluation_of(small()), command=kinds.command())).text
    assert "python evaluate.py name=x 'task=[digits_mlp]' 'policy=a b'" in text
