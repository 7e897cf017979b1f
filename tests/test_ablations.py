"""The table of what each choice of the recipe is worth."""

import json
import math
from dataclasses import fields

import pytest

from agents.runtime.command import plain
from agents.runtime.settings import build
from agents.training.train import TrainConfig
from benchmarks.ablations import BASE, POOL, VARIANTS, markdown, run_name, table
from envs.pool import PoolConfig


@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant != BASE])
def test_a_variant_is_a_valid_training_that_differs_from_the_recipe(compose, variant):
    settings = []
    for changes in ([], VARIANTS[variant]):
        config = plain(compose("train_agent", *POOL, *changes))
        training = {field.name: config[field.name] for field in fields(TrainConfig) if field.name in config}
        settings.append((build(TrainConfig, training), build(PoolConfig, config["pool"], "pool")))
    assert settings[0] != settings[1]


def test_the_table_has_ratios_to_the_recipe_of_the_same_seed(tmp_path):
    for variant, losses in ((BASE, (1.0, 2.0, 4.0)), ("no guard", (2.0, 2.0, 16.0))):
        for seed, loss in enumerate(losses):
            folder = tmp_path / "outputs" / run_name(variant, seed) / "policy"
            folder.mkdir(parents=True)
            card = {
                "mean log loss there, on the reward split": math.log(loss),
                "share of episodes lost there": 0.25,
                "episodes": 10,
            }
            (folder / "config.json").write_text(json.dumps({"training": card}))
    rows = table(tmp_path, list(VARIANTS), 3)
    assert rows[rows.variant == "no guard"].log_ratio.tolist() == pytest.approx([math.log(2), 0, math.log(4)])
    # a standard error of ln 2 / sqrt 3, times Student's 4.3027 with two degrees of freedom: 2 to the power 1 -+ 2.4842
    assert markdown(rows).splitlines()[2:] == ["| no guard | 2.00, 1.00, 4.00 | 2.00 | 0.36 to 11.19 | 25.0% |"]
