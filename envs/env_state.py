"""The state of :class:`envs.learning_rate_env.LearningRateEnv` in the middle of an episode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cloudpickle

from envs.calls import NotCopyableError
from envs.episode import episode_of, new_run
from envs.plain_state import header, load_random_state, loading, plain, random_state, require_header
from envs.rewards import Evaluation
from envs.training_run import Position
from gns.deciding.decision import DecisionCore
from gns.deciding.guard import Watch
from gns.deciding.guarded_run import GuardedRun
from gns.errors import OutOfOrderError
from gns.features.held_out import ValidationStatistics
from gns.scheduler.state import graph_from_plain, on_device_of, plain_graph

if TYPE_CHECKING:
    from envs.learning_rate_env import LearningRateEnv

_OF_EPISODE = {  # attributes that a state gives an environment
    *("episode", "run", "guarded", "observation", "rates", "evaluations", "_evaluated", "predictions", "validation"),
}


def env_state(env: LearningRateEnv) -> dict[str, Any]:
    """Return everything an environment needs to go on exactly.

    :raises OutOfOrderError: before a reset
    """
    if not hasattr(env, "guarded"):
        raise OutOfOrderError("state_dict() came before reset(); begin an episode first.")
    guard = None
    if env.config.guard.enabled:
        guard = {"snapshot": env.guarded.snapshot_state(), "position": env.guarded.position.state}
    graphs = [env.graphs.get(id(task)) for task in env.tasks]
    return plain(
        {
            **_header(env),
            "random": random_state(env),
            "begun": env.begun,
            "episode": env.episode.state_dict(env.tasks),
            # Kept, since another pass gives another graph of a model that leaves layers out at random.
            "graphs": [None if graph is None else plain_graph(graph) for graph in graphs],
            "run": env.run.state_dict(),
            "pending": env.run.pending_state(),
            "core": env.core.state_dict(),
            "guard": guard,
            "running": env.running,
            "rates": env.rates,
            "watch": vars(env.guarded.watch),
            "evaluations": env.evaluations,
            "evaluated": tuple(env._evaluated),
            "predictions": env.predictions,
            "validation": None if env.validation is None else vars(env.validation),
        }
    )


def load_env_state(env: LearningRateEnv, state: dict[str, Any]) -> None:
    """Let an environment go on from an :func:`env_state`; one that is refused changes nothing.

    :raises StateError: if the state is of other tasks or models, or damaged
    """
    require_header(state, _header(env))
    with loading():
        episode = episode_of(state["episode"], env.tasks, env.config.device)
        graphs = {
            id(task): graph_from_plain(graph)
            for task, graph in zip(env.tasks, state["graphs"], strict=True)
            if graph is not None
        }
        run = new_run(episode, decision=env.config.decision)
        core = DecisionCore(run.model, run.optimizer, graphs[id(episode.task)], episode.budget, env.config.decision)
        core.load_state_dict(on_device_of(run.model, state["core"]) or {})
        run.load_state_dict(state["run"])
        run.load_pending_state(state["pending"])
        guarded = GuardedRun(core, env.config.guard, Watch(**state["watch"]))
        if env.config.guard.enabled:
            guarded.load_snapshot_state(state["guard"]["snapshot"], Position(run, state["guard"]["position"]))
        validation = None if state["validation"] is None else ValidationStatistics(**state["validation"])
        observation = core.observe(validation)
        own = {
            "begun": state["begun"],
            "episode": episode,
            "run": run,
            "guarded": guarded,
            "observation": observation,
            "running": state.get("running", not core.finished),  # of an older version: it was saved within an episode
            "rates": list(state["rates"]),
            "evaluations": state["evaluations"],
            "graphs": graphs,
            "_evaluated": Evaluation(*state["evaluated"]),
            "predictions": None if state["predictions"] is None else state["predictions"].to(run.device),
            "validation": validation,
        }
        load_random_state(env, state["random"])
    vars(env).update(own)


def kept_of(env: LearningRateEnv) -> dict[str, Any]:
    """Return the attributes of an environment that :func:`env_state` does not hold; graphs in the order of tasks."""
    kept = {name: value for name, value in vars(env).items() if name not in _OF_EPISODE}
    return kept | {"graphs": [env.graphs.get(id(task)) for task in env.tasks]}


def restore(env: LearningRateEnv, kept: dict[str, Any], episode: dict[str, Any] | None) -> None:
    """Make an environment of its attributes and state.

    :param kept: as :func:`kept_of` returned them
    :param episode: as :func:`env_state` returned it; None: there was no reset yet
    """
    vars(env).update(kept)
    graphs = zip(env.tasks, kept["graphs"], strict=True)
    env.graphs = {id(task): graph for task, graph in graphs if graph is not None}
    if episode is not None:
        load_env_state(env, episode)


def pickled(kept: dict[str, Any]) -> bytes:
    """Return attributes as bytes; of functions that no module holds (a task's) the code is part of them.

    :raises NotCopyableError: if something in them belongs to this process
    """
    try:
        return cloudpickle.dumps(kept)
    except Exception as problem:  # of whatever object is in them
        raise NotCopyableError(
            f"The environment cannot be pickled ({type(problem).__name__}: {problem}); expected tasks and attributes "
            "made of plain values, arrays and functions. copy.deepcopy shares the tasks; or go on from state_dict() in "
            "an environment that is built anew."
        ) from problem


def _header(env: LearningRateEnv) -> dict[str, Any]:
    return header("environment", tasks=[task.name for task in env.tasks])
