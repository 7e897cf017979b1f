import sys
from dataclasses import dataclass, field

import pytest
from omegaconf import OmegaConf

from agents.runtime.command import launch, plain
from agents.runtime.settings import build, check_choices, refuse_code
from gns.errors import InvalidSettingError, UnknownNameError


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    count: int = 3


@dataclass(frozen=True)
class Outer:
    name: str = "x"
    inner: Inner = field(default_factory=Inner)
    pair: tuple[int, int] = (1, 2)
    names: tuple[str, ...] = ("a",)
    priors: dict[str, tuple[float, float]] = field(default_factory=dict)
    limit: float | None = None
    flag: bool = False


def test_nested_mappings_lists_and_numbers_in_strings_become_what_is_declared():
    built = build(
        Outer,
        {"inner": {"rate": "1e-3"}, "pair": [3, 4], "names": ["b", "c"], "priors": {"adam": [1, 2]}, "limit": 2},
    )
    assert built == Outer(
        inner=Inner(rate=0.001), pair=(3, 4), names=("b", "c"), priors={"adam": (1.0, 2.0)}, limit=2.0
    )
    assert isinstance(built.limit, float)


def test_none_passes_only_where_it_is_declared():
    assert build(Outer, {"limit": None}).limit is None
    with pytest.raises(InvalidSettingError, match=r"inner\.rate is None"):
        build(Outer, {"inner": {"rate": None}})


def test_an_unknown_key_is_named_with_its_path_and_the_nearest_known_one():
    with pytest.raises(UnknownNameError, match=r"inner\.ratte.*inner\.rate"):
        build(Outer, {"inner": {"ratte": 1.0}})


@pytest.mark.parametrize(
    "settings",
    [
        {"inner": {"rate": "fast"}},
        {"inner": {"count": 1.5}},
        {"inner": {"count": True}},
        {"pair": [1, 2, 3]},
        {"pair": 7},
        {"inner": 3},
        {"flag": "yes"},
        {"name": 3},
    ],
)
def test_a_value_of_another_kind_is_refused(settings):
    with pytest.raises(InvalidSettingError, match="expected"):
        build(Outer, settings)


# ---------------------------------------------------------------------- nothing on a command line names code


@pytest.mark.parametrize(
    "argument",
    [
        "_target_=os.system",
        "+task._target_=os.system",
        "++agent.network={_target_: os.system}",
        "env={a: [1, {b: {_target_: x}}]}",
        "seed=choice(1, {_target_: x})",
        "+agent._args_=[1]",
        "+task@x._target_=digits_mlp",
    ],
)
def test_a_key_that_names_code_is_refused(argument):
    with pytest.raises(InvalidSettingError, match="names code"):
        check_choices([argument])


@pytest.mark.parametrize(
    "argument",
    [
        "+hydra.callbacks.x._target_=os.system",
        "hydra.launcher._target_=os.system",
        "hydra={callbacks: {x: {}}}",
        "hydra.searchpath=[pkg://os]",
        "+hydra.job_logging.handlers.x.class=logging.Handler",
        "hydra.job.env_set.LD_PRELOAD=x",
        "hydra/launcher=joblib",
        "hydra/job_logging=none",
        "~hydra.run.dir",
        "+task@hydra.callbacks.x=digits_mlp",
    ],
)
def test_a_setting_by_which_hydra_would_import_is_refused(argument):
    with pytest.raises(InvalidSettingError, match=r"changes Hydra itself.*hydra\.run\.dir"):
        check_choices([argument])


@pytest.mark.parametrize(
    "argument",
    [
        "--config-dir=/tmp",
        "--config-dir",
        "--config-d",
        "-cd",
        "-cp=/tmp",
        "-cn",
        "--exp=x.pickle",
        "--experimental-rerun",
    ],
)
def test_an_option_that_reads_other_configuration_is_refused(argument):
    with pytest.raises(InvalidSettingError, match="configuration from elsewhere"):
        check_choices(["seed=1", argument, "/tmp"])


@pytest.mark.parametrize(
    "argument",
    ["task=../x", "+task=../x", "task='../x'", "task=[digits_mlp,../x]", "task=digits_mlp,../x", "task@y=/etc/x"],
)
def test_a_config_of_another_folder_is_refused(argument):
    with pytest.raises(UnknownNameError, match="Unknown task"):
        check_choices([argument])


@pytest.mark.parametrize("argument", ["tracker=null", "agent@x=null", "tracker=3", "tracker={a: 1}", "~tracker=[]"])
def test_a_choice_that_is_no_name_is_refused(argument):
    with pytest.raises(UnknownNameError, match="expected one of"):
        check_choices([argument])


def test_a_group_that_does_not_exist_is_refused():
    with pytest.raises(UnknownNameError, match="group of configurations 'task/x'; expected one of: agent,"):
        check_choices(["task/x=../../y"])


def test_what_is_nested_too_deeply_to_be_read_is_named():
    with pytest.raises(InvalidSettingError, match="nested too deeply"):
        check_choices(["a=" + "[" * 5000 + "]" * 5000])


@pytest.mark.parametrize(
    "argument",
    [
        "task=[digits_mlp,mnist1d_mlp]",
        "task=digits_mlp,mnist1d_mlp",
        "task=glob(digits*)",
        "~controller",
        "+controller.rex.sampling=10-10",
        "name=_target_",
        "name=${oc.env:USER}",
        "hydra.run.dir=/tmp/x",
        "hydra.mode=MULTIRUN",
        "--cfg",
        "--multirun",
        "-m",
        "--help",
    ],
)
def test_what_is_of_use_passes(argument):
    check_choices([argument])


@pytest.mark.parametrize("option", [["--cfg", "job"], ["--cfg=job"], ["-c", "job"], ["--info", "config"]])
def test_options_that_show_take_a_value(option):
    check_choices(["seed=2", *option, "name=x"])
    with pytest.raises(InvalidSettingError, match="names code"):
        check_choices([*option, "name._target_=os.system"])


@pytest.mark.parametrize("entry", ["train_agent", "evaluate"])
def test_the_commands_show_their_configuration_and_do_nothing(entry, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [entry, "name=seen", "--cfg", "job"])
    launch(entry, lambda config: pytest.fail("it was run"))
    assert "name: seen" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_a_key_that_names_code_is_refused_wherever_it_came_from():
    with pytest.raises(InvalidSettingError, match="names code"):
        build(Outer, {"inner": {"_target_": "os.system"}})
    made = OmegaConf.create({"name": "x", "priors": '${oc.create:"{_target_: os.system}"}'})
    with pytest.raises(InvalidSettingError, match="names code"):
        build(Outer, made)
    with pytest.raises(InvalidSettingError, match="names code"):
        plain(made)
    with pytest.raises(InvalidSettingError, match=r"task\.mine has a key"):
        refuse_code({"a": [{"_target_": 1}]}, "task.mine")


@pytest.mark.parametrize("entry", ["train_agent", "evaluate"])
def test_the_commands_end_with_the_message_and_import_nothing(entry, monkeypatch, capsys, tmp_path):
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.argv", [entry, "+hydra.callbacks.x._target_=trap.Callback"])
    with pytest.raises(SystemExit, match=r"InvalidSettingError: .*changes Hydra itself"):
        launch(entry, lambda config: None)
    assert "trap" not in sys.modules


def test_a_reference_that_leads_nowhere_ends_with_the_message(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train_agent", "name=${nope}", "hydra.run.dir=."])
    with pytest.raises(SystemExit, match=r"InvalidSettingError: .*'nope' not found"):
        launch("train_agent", plain)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"names": "adam"}, "names is 'adam'; expected a list, as in names=[adam]."),
        ({"pair": 7}, "pair is 7; expected a list of 2, as in pair=[7,...]."),
        ({"pair": [1, 2, 3]}, "expected a list of 2, as in pair=[...,...]."),
        ({"priors": {"adam": 0.1}}, "priors.adam is 0.1; expected a list of 2, as in priors.adam=[0.1,...]."),
        ({"priors": 3}, "priors is 3; expected settings by name, as in 'priors={name: value}'."),
        ({"inner": {"count": 1.5}}, "inner.count is 1.5; expected a whole number."),
        ({"flag": "yes"}, "flag is 'yes'; expected true or false."),
    ],
)
def test_a_value_of_another_kind_is_told_how_it_is_written(settings, words):
    with pytest.raises(InvalidSettingError) as told:
        build(Outer, settings)
    assert words in str(told.value)


@pytest.mark.parametrize(
    "argument", ["episodes=${oc.create:{a:1}}", "hydra.run.dir=${oc.create:{a:1}}", "a b", "name=a b}"]
)
def test_what_is_no_override_is_refused_in_our_words(argument):
    with pytest.raises(InvalidSettingError, match=r"is no setting; expected KEY=VALUE"):
        check_choices([argument])
    check_choices(["--multirun", "--help", "name='a b'"])
