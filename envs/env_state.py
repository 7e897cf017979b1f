"""The state of :class:`envs.learning_rate_env.LearningRateEnv` in the middle of an episode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from envs.episode import episode_of, new_run
from envs.plain_state import header, load_random_state, loading, plain, random_state, require_header
from envs.training_run import Position
from gns.deciding.decision import DecisionCore
from gns.deciding.guard import Watch
from gns.deciding.guarded_run import GuardedRun
from gns.errors import OutOfOrderError
from gns.features.held_out import ValidationStatistics
from gns.scheduler.state import graph_from_plain, on_device_of, plain_graph

if TYPE_CHECKING:
    from envs.learning_rate_env import LearningRateEnv


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
            # Not taken anew: where layers are left out by chance, another pass gives another graph.
            "graphs": [None if graph is None else plain_graph(graph) for graph in graphs],
            "run": env.run.state_dict(),
            "pending": env.run.pending_state(),
            "core": env.core.state_dict(),
            "guard": guard,
            "rates": env.rates,
            "watch": vars(env.guarded.watch),
            "evaluations": env.evaluations,
            "evaluated": env._evaluated,
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
            "rates": list(state["rates"]),
            "evaluations": state["evaluations"],
            "graphs": graphs,
            "_evaluated": tuple(state["evaluated"]),
            "predictions": None if state["predictions"] is None else state["predictions"].to(run.device),
            "validation": validation,
        }
        load_random_state(env, state["random"])
    vars(env).update(own)


def _header(env: LearningRateEnv) -> dict[str, Any]:
    return header("environment", tasks=[task.name for task in env.tasks])
