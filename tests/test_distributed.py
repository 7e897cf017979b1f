"""Several processes that train one model take the same decisions, those of one process with the whole of it."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_run import CASES, TIMEOUT, UPDATES, Net, Run
from scheduler_loop import lively_policy
from test_imports import ROOT, imported, modules

from gns import GNSScheduler, InvalidSettingError

SCRIPT = Path(__file__).with_name("distributed_run.py")
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}


def launched(ranks: int, folder: Path, *scenarios: str) -> dict[str, list[Any]]:
    """What every rank saw in each scenario."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    finished = subprocess.run(
        [*launcher, str(SCRIPT), str(folder), *scenarios], capture_output=True, text=True, env=ENVIRONMENT, timeout=150
    )
    assert finished.returncode == 0, finished.stderr
    return {name: [torch.load(folder / f"{name}-{rank}.pt") for rank in range(ranks)] for name in scenarios}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return launched(2, tmp_path_factory.mktemp("two"), "cases", "troubles", "tensors", "guards", "resumes")


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return launched(4, tmp_path_factory.mktemp("four"), "copies", "parallel")


def assert_as_one_process(ranks: list[Any], case: str) -> None:
    """The same bits on all ranks, and what one process sees with the whole batch."""
    whole = Run(case, alone=True).updates().report()
    for rank in ranks:
        assert rank["rates"] == ranks[0]["rates"] and len(rank["rates"]) == UPDATES
        assert rank["graph"] == whole["graph"]
        for name in ("nodes", "globals"):
            assert len(rank[name]) == len(whole[name]) == 4
            assert all(torch.equal(one, other) for one, other in zip(rank[name], ranks[0][name], strict=True))
            for seen, expected in zip(rank[name], whole[name], strict=True):
                torch.testing.assert_close(seen, expected, rtol=0, atol=1e-5)
        assert [rate for rates in rank["rates"] for rate in rates] == pytest.approx(
            [rate for rates in whole["rates"] for rate in rates], rel=1e-6
        )


@pytest.mark.parametrize("case", CASES)
def test_features_are_those_of_one_process_and_rates_the_same_on_both(two, case):
    assert_as_one_process([rank[case] for rank in two["cases"]], case)


def test_what_is_compared_is_not_the_same_on_every_rank_by_itself(two):
    alone, calls = zip(*(rank["alone"] for rank in two["troubles"]), strict=True)
    assert alone[0] != alone[1]
    assert calls == ([], [])


@pytest.mark.parametrize("case", CASES)
def test_a_decision_takes_one_collective(two, case):
    for rank in two["cases"]:
        assert rank[case]["collectives"] == ["broadcast_object_list"] + ["all_reduce"] * len(rank[case]["nodes"])


def test_a_shard_may_be_empty_or_uneven(two):
    first, second = (rank["fsdp adam"]["weights"] for rank in two["cases"])
    assert (first["gain"].numel(), second["gain"].numel()) == (1, 0)
    assert (len(first["head.weight"]), len(second["head.weight"])) == (2, 1)
    ignored = [rank["fsdp with a parameter of its own"]["weights"]["head.bias"] for rank in two["cases"]]
    assert torch.equal(*ignored) and ignored[0].shape == (3,)


@pytest.mark.parametrize("case", ["fsdp adam", "fsdp unknown optimizer"])
def test_shards_with_copies_count_once(four, case):
    assert_as_one_process([rank[case] for rank in four["copies"]], case)


@pytest.mark.parametrize("kind", ["tensors", "tensors and shards"])
def test_layers_whose_numbers_ranks_share_look_whole(four, kind):
    for rank in four["parallel"]:
        seen, whole = rank[kind], rank[""]
        assert seen["rates"] == four["parallel"][0][kind]["rates"] and seen["rollbacks"] == 0
        assert seen["graph"] == whole["graph"]
        assert seen["rates"] == pytest.approx(whole["rates"], rel=1e-6) and len(seen["rates"]) == 4
        for features, expected in zip(seen["features"], whole["features"], strict=True):
            assert features == pytest.approx(expected, abs=1e-5)


def test_what_a_rank_adds_is_shared_among_those_that_hold_the_same(four):
    for rank in four["copies"]:
        assert rank["shares"] == {
            "copies of parts": 1 / 2,
            "parts of parts": 1.0,
            "copies": 1 / 4,
            "parts on one of two meshes": 1 / 2,
            "plain": 1 / 4,
        }


def test_a_rank_that_drifts_is_brought_in_line_at_the_next_decision(two):
    first, second = ([rates[0] for rates in rank["drift"]["rates"]] for rank in two["troubles"])
    assert first[:4] == second[:4]
    assert second[4] == pytest.approx(1.01 * first[4]) and second[5] == pytest.approx(1.01 * first[5])
    assert first[6:] == second[6:]
    assert two["troubles"][0]["drift"]["multipliers"][2:] == two["troubles"][1]["drift"]["multipliers"][2:]


def test_all_ranks_raise_when_one_is_at_another_update(two):
    first, second = (rank["another update"] for rank in two["troubles"])
    assert first.startswith("RanksDisagreeError: Rank 0 decides at {'update': 3,") and "another rank is not" in first
    assert second.startswith("RanksDisagreeError") and "rank 1 at {'update': 6," in second


def test_ranks_given_other_arguments_are_refused(two):
    assert two["troubles"][0]["other arguments"] == ""
    assert two["troubles"][1]["other arguments"].startswith("RanksDisagreeError: total_steps is 6 on rank 1 and 5 on")


def test_all_ranks_take_the_layer_graph_of_the_first(two):
    first, second = two["troubles"]
    assert len(first["adopted graph"]["names"]) == 6
    assert first["adopted graph"] == second["adopted graph"] == second["graph of a rank without"]


def test_a_group_may_be_named(two):
    rates = [rank["group"] for rank in two["troubles"]] + [two["cases"][0]["ddp adam"]["rates"]]
    assert rates[0] == rates[1] == rates[2]
    for rank in two["troubles"]:
        assert "not of the process group" in rank["others' group"]
        assert rank["copied group"].startswith("InvalidSettingError") and "ranks [0, 1]" in rank["copied group"]
        assert rank["sharded, alone"].startswith("InvalidSettingError: A parameter is spread over ranks [0, 1]")


@pytest.mark.parametrize("given", [True, 0, "world", [0, 1]])
def test_what_is_no_group_is_refused(given):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InvalidSettingError, match="process_group is"):
        GNSScheduler(optimizer, model, total_steps=UPDATES, policy=lively_policy(), process_group=given)


def test_a_decision_core_by_itself_communicates_with_no_one(two):
    assert [rank["core alone"] for rank in two["tensors"]] == [[], []]


def test_tensors_are_read_as_the_parameter_lies(two):
    first, second = two["tensors"]
    together = torch.cat([first["pending gradient"], second["pending gradient"]])
    assert torch.equal(together, 3 * torch.arange(3.0)[:, None])
    assert (first["loss"], second["loss"], second["plain loss"]) == (3.0, 3.0, 5.0)


def test_a_sharded_model_may_be_in_use_when_its_scheduler_is_made(two):
    for rank in two["tensors"]:
        assert set(rank["unsharded"]) == {"DTensor"}
        assert rank["late"] == rank["unreadable, graph given"]
        assert [r for [r] in rank["late"]] == pytest.approx([r for [r] in Run("fsdp adam", alone=True).updates().rates])


def test_models_whose_parameters_cannot_be_told_are_refused(two):
    for rank in two["tensors"]:
        assert rank["flat"].startswith("LayerGraphError") and "FSDP1" in rank["flat"]
        assert rank["unreadable"].startswith("LayerGraphError") and "before the model is sharded" in rank["unreadable"]


@pytest.mark.parametrize("case", ["ddp adam", "fsdp adam", "fsdp with a parameter of its own"])
def test_all_ranks_are_taken_back_when_one_ranks_loss_is_not_finite(two, case):
    first, second = (rank[case] for rank in two["guards"])
    assert first["rollbacks"] == second["rollbacks"] == [6]
    assert first["rates"] == second["rates"] and len(first["rates"]) == UPDATES
    for rank in (first, second):
        assert all(torch.equal(rank["good"][name], rank["put back"][name]) for name in rank["good"])
        assert all(weight.isfinite().all() for weight in rank["weights"].values())
        assert any(not torch.equal(rank["good"][name], rank["weights"][name]) for name in rank["good"])


def test_a_run_goes_on_to_the_last_bit_from_each_ranks_own_state(two):
    assert len(two["resumes"][0]) == 8
    for rank in two["resumes"]:
        for run in rank.values():
            assert run["rates"] == run["again"]
            assert all(torch.equal(weight, run["weights again"][name]) for name, weight in run["weights"].items())


def test_a_run_goes_on_from_the_first_ranks_state_the_same_on_all(two):
    for first, second in zip(two["resumes"][0].values(), two["resumes"][1].values(), strict=True):
        assert first["rank 0's"] == second["rank 0's"]
        assert first["rank 0's"] != first["rates"]  # its losses stand for all
        for rate, expected in zip(first["rank 0's"], first["rates"], strict=True):
            assert rate == pytest.approx(expected, rel=0.01)


def test_a_killed_rank_ends_the_others_within_the_groups_time_out(tmp_path):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    address = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [  # by hand: a launcher would end the other rank itself
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(tmp_path), "killed"],
            env={**ENVIRONMENT, **address, "RANK": str(rank)},
            stderr=subprocess.DEVNULL,
        )
        for rank in range(2)
    ]
    try:
        assert [rank.wait(timeout=60) for rank in ranks] == [0, -9]
    finally:
        for rank in ranks:
            rank.kill()
    survivor = torch.load(tmp_path / "killed-0.pt")
    assert survivor["error"] and not survivor["named"]
    assert survivor["seconds"] < TIMEOUT + 4.0


def test_nothing_of_gns_imports_distributed_tensors():
    for name, path in modules("gns").items():
        names = imported(path.read_text(), name)
        assert not [
            other for other in names if other.startswith(("torch.distributed.tensor", "torch.distributed.fsdp"))
        ]


def test_a_state_may_go_on_in_one_process(two):
    """A run of one process goes on from the state of a rank, as where the number of ranks changes."""
    run = Run("ddp adam", alone=True).updates(4)
    state = two["troubles"][0]["state"]
    run.scheduler.load_state_dict(state)
    run.updates(UPDATES - 4)
    rates = [rate for [rate] in two["cases"][0]["ddp adam"]["rates"]]
    assert [rate for [rate] in run.rates[4:]] == pytest.approx(rates[4:], rel=0.01)
    assert all(math.isfinite(rate) for [rate] in run.rates)
