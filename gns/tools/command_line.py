"""The command line, ``python -m gns``: ``inspect`` a policy or a run, ``plan`` a schedule.

What went wrong is one line on standard error, with the error's name; the exit status is 0 if all is well, 1 if not, and
2 for arguments that cannot be read. Standard output holds the result alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from typing import Any

from gns.errors import GNSError, InvalidSettingError
from gns.features import DEFAULT_FEATURE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    :param arguments: words of the command line; by default the process's own
    """
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.command == "plan":
        _check_together(parser, given)
    try:
        return _inspect(given) if given.command == "inspect" else _plan(given)
    except BrokenPipeError:
        raise
    except (GNSError, OSError) as error:
        if given.traceback:
            raise
        _report(error)
        return 1


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print JSON, for other programs")
    common.add_argument("--traceback", action="store_true", help="show where an error came from")
    common.add_argument("--revision", help="branch, tag or commit of a Hub id")
    parser = argparse.ArgumentParser(prog="python -m gns", description="Learning-rate schedules that are learned.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    inspect = commands.add_parser(
        "inspect",
        parents=[common],
        help="say what a policy is, and whether it can be used; or draw what one did to a run",
        description="Say what a policy is and what it was trained on, and check its files: exit status 1 if it cannot "
        "be used. Or print and draw the decisions of a run whose history a scheduler saved. Nothing is unpickled.",
    )
    inspect.add_argument(
        "source", metavar="POLICY|RUN", help="folder or Hub id of a policy; or a history: its file, or its folder"
    )
    inspect.add_argument("--pictures", metavar="FOLDER", help="of a run: where its pictures go; beside it by default")
    inspect.add_argument(
        "--feature",
        metavar="NAME",
        default=DEFAULT_FEATURE,
        help=f"of layers, to be drawn; {DEFAULT_FEATURE} by default",
    )
    inspect.add_argument(
        "--decision", type=int, default=-1, metavar="N", help="that the layer graph is drawn at, from 0; -1: the last"
    )

    plan = commands.add_parser(
        "plan",
        parents=[common],
        help="show the layer graph of a model, and what would be scheduled",
        description="Show the layer graph of a model and what would be scheduled. package.module:Class is imported, "
        "which runs that module. Of a model of transformers the configuration alone is read; its weights are random, "
        "and no code comes from the Hub.",
    )
    plan.add_argument("target", metavar="TARGET", help="package.module:Class, or a folder or Hub id of transformers")
    plan.add_argument("--args", metavar="JSON", help="arguments of the class, or settings of the configuration")
    plan.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="3,32,32",
        help="shape of an input, without the batch; repeatable",
    )
    plan.add_argument(
        "--input-dtype",
        action="append",
        default=[],
        metavar="KIND",
        help="float (default), long or bool; one, or one an input",
    )
    plan.add_argument(
        "--auto-class", metavar="NAME", help="class of transformers, as AutoModelForSequenceClassification"
    )
    plan.add_argument(
        "--meta", action="store_true", help="allocate no memory: for large models, where the model allows it"
    )
    plan.add_argument("--blocks", action="store_true", help="the graph pooled to blocks")
    plan.add_argument("--png", metavar="FILE", help="draw the graph into this file")
    plan.add_argument(
        "--optimizer", metavar="NAME", help="show parameter groups: sgd, sgdm, adam, adamw, ... of torch.optim"
    )
    plan.add_argument("--lr", type=float, metavar="RATE", help="initial learning rate of the optimizer")
    plan.add_argument("--total-steps", type=int, metavar="T", help="show decisions over a budget of T updates")
    plan.add_argument("--policy", metavar="POLICY", help="folder or Hub id of the policy that decides")
    return parser


def _check_together(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    for option, needed in (("lr", "optimizer"), ("policy", "total_steps")):
        if getattr(given, option) is not None and getattr(given, needed) is None:
            parser.error(f"--{option} needs --{needed.replace('_', '-')}")


def _inspect(given: argparse.Namespace) -> int:
    from gns.tools.history_files import is_history
    from gns.tools.inspect_policy import inspect_policy, print_policy

    if is_history(given.source):
        return _inspect_history(given)
    report, problem = inspect_policy(given.source, given.revision)
    if given.json:
        _print_json(report)
    elif "folder" in report:
        print_policy(report)
    if problem is not None:
        raise problem
    return 0


def _inspect_history(given: argparse.Namespace) -> int:
    from gns.tools.inspect_history import inspect_history, print_history

    report = inspect_history(given.source, given.pictures, given.feature, given.decision)
    if given.json:
        _print_json(report)
    else:
        print_history(report)
    return 0


def _plan(given: argparse.Namespace) -> int:
    import torch

    from gns.graph.layer_graph import layer_graph
    from gns.tools import plan as planning
    from gns.tools.plan_target import load_target

    shapes = [_shape(text) for text in given.input]
    device = torch.device("meta") if given.meta else contextlib.nullcontext()
    # A model may print while it is imported, built or run; standard output is the plan's.
    with contextlib.redirect_stdout(sys.stderr), torch.random.fork_rng(devices=[]), device:
        torch.manual_seed(0)
        target = load_target(given.target, given.args, shapes, given.input_dtype, given.auto_class, given.revision)
        model = target.model
        graph = layer_graph(model, target.forward())
    plan: dict[str, Any] = {"target": given.target, "model": type(model).__name__, "inputs": target.describe()}
    plan.update(planning.describe_layers(model, graph))
    optimizer = None
    if given.optimizer is not None:
        optimizer = planning.build_optimizer(model, given.optimizer, given.lr)
        plan["optimizer"] = planning.describe_optimizer(optimizer, model, graph)
    if given.total_steps is not None:
        plan["decisions"], config = planning.describe_decisions(given.total_steps, given.policy)
        if optimizer is not None:
            planning.check_schedule(model, optimizer, graph, given.total_steps, config)
    if given.png is not None:
        planning.save_picture(graph, given.png, given.blocks)
    if given.json:
        _print_json(plan)
    else:
        planning.print_plan(plan, given.blocks)
    return 0


def _shape(text: str) -> tuple[int, ...]:
    parts = text.split(",") if text else []
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise InvalidSettingError(f"--input is {text!r}; expected whole numbers above 0 with commas, such as 3,32,32.")
    return tuple(int(part) for part in parts)


def _print_json(report: dict[str, Any]) -> None:
    # NaN is no JSON for other readers.
    print(json.dumps(json.loads(json.dumps(report), parse_constant=str), indent=2))


def _report(error: Exception) -> None:
    from gns.tools.console import printable

    print(f"{type(error).__name__}: {printable(' '.join(str(error).split()))}", file=sys.stderr)
