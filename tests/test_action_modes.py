"""Action modes: each is one row of a table, which everything else asks."""

import ast
import math
from pathlib import Path

import numpy as np
import pytest
from scheduler_loop import lively_policy

from envs import EnvConfig, LearningRateEnv
from gns import DecisionConfig, GNSPolicy, UnknownNameError
from gns.deciding.action_modes import ACTION_MODES, POWER, ActionMode, Law

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "gns" / "deciding" / "action_modes.py"
NUMBERS = {"base": 3.0, "first_base": 50.0, "strength": 1.7, "layer_base": 2.0}
every_mode = pytest.mark.parametrize("mode", ACTION_MODES)


@every_mode
@pytest.mark.parametrize("decided_at", [-1, 0, 12])
@pytest.mark.parametrize("decide_first", [True, False])
def test_the_action_for_a_ratio_multiplies_by_that_ratio(mode, decided_at, decide_first):
    settings = DecisionConfig(mode, decide_first=decide_first, **NUMBERS)
    for action in (-0.9, -0.3, 0.0, 0.5, 1.0):
        ratio = ACTION_MODES[mode].multiplier(action, settings, decided_at)
        found = ACTION_MODES[mode].action(ratio, settings, decided_at)
        assert found == pytest.approx(action if settings.acts(decided_at) else 0.0, abs=1e-12)


@every_mode
def test_what_no_action_reaches_gets_the_nearest(mode):
    settings = DecisionConfig(mode, **NUMBERS)
    assert [ACTION_MODES[mode].action(ratio, settings, 3) for ratio in (0.0, 1e-300, 1e300)] == [-1.0, -1.0, 1.0]


def test_only_the_first_decision_that_acts_has_a_range_of_its_own():
    settings, later = (DecisionConfig(decide_first=first, **NUMBERS) for first in (True, False))
    reached = [[ACTION_MODES["profile"].multiplier(1.0, of, at) for at in (-1, 0, 1)] for of in (settings, later)]
    assert reached == [[50.0, 3.0, 3.0], [1.0, 50.0, 3.0]]


@every_mode
def test_a_mode_in_words_has_the_numbers_of_its_settings(mode):
    described = ACTION_MODES[mode].described(DecisionConfig(mode, decide_first=False, **NUMBERS))
    formulas = {
        "profile": "level * f(t/T), level <- level * 3^a; f: rex; level <- level * 50^a at the first decision",
        "prior": "level * f(t/T), level <- default * 3^a; f: rex; level <- default * 50^a at the first decision",
        "recursive": "level, level <- level * 3^a; level <- level * 50^a at the first decision",
        "anchored": "level * f(t/T), level <- initial * exp(1.7 * a); f: rex",
        "gns-paper": "level, level <- level * (1 + a)",
        "per-layer": "level * f(t/T) * 2^(b - mean b), level <- level * 3^a; f: rex; "
        "level <- level * 50^a at the first decision",
    }
    assert described == f"rate = {formulas[mode]}; as it is in the first interval"


def test_the_document_has_the_tables_formulas():
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    rows = [line for line in text.partition("| action mode |")[2].partition("\n\n")[0].splitlines()[2:]]
    words = str.maketrans({"{": None, "}": None, "*": "·"})
    assert rows == [
        f"| `{name}` | {mode.rate_formula} | {mode.decision_formula} |".translate(words).replace("<-", "←")
        for name, mode in ACTION_MODES.items()
    ]


def test_an_unknown_mode_is_named():
    with pytest.raises(UnknownNameError, match=r"Unknown action mode 'profil'.*Did you mean 'profile'"):
        DecisionConfig("profil")


# ---------------------------------------------------------------------- one place


def compared(tree: ast.AST) -> list[str]:
    """Names of modes that a module compares something with, or looks something up by."""
    looked_up: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            looked_up += [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            looked_up.append(node.value)
        elif isinstance(node, ast.Dict):
            keys = [key for key in node.keys if key is not None]
            names = {key.value for key in keys if isinstance(key, ast.Constant)} & set(ACTION_MODES)
            looked_up += keys if names != {"profile"} else []  # what a schedule has is called so, too
    constants = [leaf for part in looked_up for leaf in ast.walk(part) if isinstance(leaf, ast.Constant)]
    return [leaf.value for leaf in constants if leaf.value in ACTION_MODES]


@pytest.mark.parametrize(
    "source",
    [
        "mode == 'recursive'",
        "config.mode in ('recursive', 'gns-paper')",
        "{'anchored': 1}[mode]",
        "match mode:\n    case 'per-layer': pass",
    ],
)
def test_every_comparison_with_a_name_is_seen(source):
    assert compared(ast.parse(source))


def test_no_other_module_compares_names_of_modes():
    sources = [ROOT / "train_agent.py", ROOT / "evaluate.py"]
    sources += [path for room in ("gns", "envs", "agents") for path in (ROOT / room).rglob("*.py")]
    found = {path: compared(ast.parse(path.read_text(encoding="utf-8"))) for path in sources if path != TABLE}
    alike = {ROOT / "gns" / "features", ROOT / "envs" / "rewards.py"}  # a schema and a reward are called gns-paper, too
    assert len(found) > 100
    assert [path for path, names in found.items() if names and alike.isdisjoint({path, *path.parents})] == []


# ---------------------------------------------------------------------- a new one


def cube(action: float, settings: DecisionConfig, largest: float) -> float:
    return largest ** (action**3)


@pytest.fixture
def new_mode(monkeypatch) -> str:
    law = Law(cube, lambda ratio, settings, largest: math.cbrt(POWER.action(ratio, settings, largest)), "{base}^(a^3)")
    monkeypatch.setitem(ACTION_MODES, "cubic", ActionMode("cubic", law, has_profile=False))
    return "cubic"


def test_a_row_is_all_that_a_new_mode_needs(new_mode, tmp_path):
    """In the environment, to follow wanted rates in it, in a policy's file and in words."""
    decision, mode = DecisionConfig(new_mode, base=4.0, num_decisions=4), ACTION_MODES[new_mode]
    env = LearningRateEnv(["digits_mlp"], EnvConfig(optimizers=("adam",), budgets=(8, 8), decision=decision))
    wanted, before = [0.01, 0.02, 0.005, 0.004], 0.02
    env.reset(seed=0, options={"learning_rate": before})
    for number, rate in enumerate(wanted):
        _, _, ended, _, _ = env.step(np.array([mode.action(rate / before, decision, number - 1)], dtype=np.float32))
        before = rate
    assert ended
    assert env.rates[::2] == pytest.approx(wanted, rel=1e-5)
    assert env.rates[1::2] == env.rates[::2]  # constant in between
    policy = lively_policy(new_mode)
    policy.save_pretrained(tmp_path)
    assert GNSPolicy.from_pretrained(tmp_path).config == policy.config
    assert mode.described(decision) == "rate = level, level <- level * 4^(a^3)"
