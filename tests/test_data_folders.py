"""Data as people lay them out: folders of links, sets that lack something, models that cannot be used as encoders."""

import os
import shutil
from pathlib import Path

import pytest
from text_hub import WORDS, card, save, write

from agents.runtime.command import use_data_root
from envs import TrainingRun, get_task
from envs.tasks import glue, images, pretrained
from envs.tasks.hub import DataNotFoundError, load_hub_dataset
from gns.errors import InvalidSettingError

PART = "mrpc/train-00000-of-00001.parquet"


def write_pair(folder: Path, sentence: str) -> None:
    write(folder / PART, {"sentence1": [sentence], "sentence2": ["x"], "label": [0]})
    os.utime(folder / PART, ns=(0, 0))


def sentences() -> list[str]:
    return load_hub_dataset(glue.HUB_ID, "mrpc")["train"]["sentence1"][:]


@pytest.fixture
def linked(hub, tmp_path, monkeypatch) -> Path:
    """A data root in which the folder of a configuration is a link, to a folder that a link in it leads back to."""
    for folder in ("shared", "other"):
        write_pair(tmp_path / folder, folder[0] * 6)
    (tmp_path / "shared/mrpc/back").symlink_to(tmp_path / "shared")
    own = tmp_path / "root" / glue.HUB_ID
    own.mkdir(parents=True)
    (own / "README.md").write_text(card({"mrpc": ["train"]}))
    (own / "mrpc").symlink_to(tmp_path / "shared/mrpc")
    monkeypatch.setenv("GNS_DATA_ROOT", str(tmp_path / "root"))
    return tmp_path


def test_files_that_change_behind_a_link_give_other_data(linked):
    assert sentences() == ["ssssss"]
    write_pair(linked / "shared", "tttttt")
    os.utime(linked / "shared" / PART, ns=(0, 1))
    assert sentences() == ["tttttt"]


def test_a_link_that_leads_elsewhere_gives_other_data(linked):
    assert sentences() == ["ssssss"]
    sizes = {(linked / folder / PART).stat().st_size for folder in ("shared", "other")}
    assert len(sizes) == 1  # and the files have one time
    (linked / "root" / glue.HUB_ID / "mrpc").unlink()
    (linked / "root" / glue.HUB_ID / "mrpc").symlink_to(linked / "other/mrpc")
    assert sentences() == ["oooooo"]


def test_a_data_root_is_followed_as_the_system_does(linked, monkeypatch):
    (linked / "far/away").mkdir(parents=True)
    (linked / "far/data").symlink_to(linked / "root")
    (linked / "link").symlink_to(linked / "far/away")
    monkeypatch.chdir(linked)
    for root in ("link/../data", str(linked / "far/../root"), "root"):
        monkeypatch.setenv("GNS_DATA_ROOT", root)
        assert sentences() == ["ssssss"]
        use_data_root(root)
        assert os.environ["GNS_DATA_ROOT"] == str(linked / "root")
    monkeypatch.setenv("HOME", str(linked))
    monkeypatch.setenv("GNS_DATA_ROOT", "~/root")
    assert sentences() == ["ssssss"]


# ---------------------------------------------------------------------- what a set lacks


@pytest.fixture
def mnist(hub, tmp_path, monkeypatch) -> Path:
    """A folder of MNIST's made-up files that may be changed."""
    shutil.copytree(hub / "ylecun/mnist", tmp_path / "ylecun/mnist")
    monkeypatch.setenv("GNS_DATA_ROOT", str(tmp_path))
    return tmp_path / "ylecun/mnist"


def refused(match: str) -> None:
    with pytest.raises(DataNotFoundError, match=match) as caught:
        images.load_split(images.MNIST, "train")
    assert "'ylecun/mnist'" in str(caught.value) and os.environ["GNS_DATA_ROOT"] not in str(caught.value)


def test_a_set_without_its_training_split_is_named(mnist):
    (file,) = mnist.rglob("train-*")
    file.unlink()
    refused("no split 'train', only test")


def test_a_text_set_without_its_training_split_is_named(linked, monkeypatch):
    (linked / "shared" / PART).rename(linked / "shared/mrpc/validation-00000-of-00001.parquet")
    (linked / "root" / glue.HUB_ID / "README.md").write_text(card({"mrpc": ["validation"]}))
    with pytest.raises(DataNotFoundError, match=r"'nyu-mll/glue' \(mrpc\) have no split 'train', only validation"):
        get_task("glue_mrpc").training_data()


def test_a_set_without_a_column_or_an_example_is_named(mnist):
    import datasets

    (file,) = mnist.rglob("train-*")
    whole = datasets.Dataset.from_parquet(str(file))
    whole.remove_columns("label").to_parquet(file)
    for other in mnist.rglob("test-*"):
        other.unlink()
    refused("600 examples with columns image in split 'train'; expected some, with image, label")
    whole.select([]).to_parquet(file)
    refused("no data")


def test_a_script_in_a_data_folder_is_named_and_not_run(mnist):
    (mnist / "mnist.py").write_text(f"open({str(mnist / 'ran')!r}, 'w')")
    refused("mnist.py.*data files and no script")
    assert not (mnist / "ran").exists()
    (mnist / "mnist.py").rename(mnist / "convert.py")  # of another name it is no part of the set
    assert len(images.load_split(images.MNIST, "train")) == 600
    assert not (mnist / "ran").exists()


# ---------------------------------------------------------------------- models that are no encoders


def make_decoder(folder: Path, padding: bool, **settings) -> str:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2Config, GPT2LMHeadModel

    special = {"bos": "<end>", "eos": "<end>", **({"pad": "<pad>"} if padding else {})}
    backend = ByteLevelBPETokenizer()
    backend.train_from_iterator([" ".join(WORDS)] * 3, vocab_size=400, special_tokens=list(special.values()))
    config = GPT2Config(**{"vocab_size": 420, "n_positions": 64, "n_embd": 16, "n_layer": 1, "n_head": 2, **settings})
    save(folder, backend._tokenizer, GPT2LMHeadModel, config, special)
    return str(folder)


def update(encoder: str, **model) -> float:
    task = get_task("glue_mrpc", batch_size=8, model={"encoder": encoder, "max_length": 32, **model})
    run = TrainingRun(task, "adamw", 1e-4, 0)
    run.compute_gradient()
    return float(run.loss)


@pytest.mark.parametrize("trained", [True, False])
def test_a_decoder_is_trained_where_it_knows_how_to_pad_and_is_named_where_not(hub, tmp_path, trained):
    assert update(make_decoder(tmp_path / "padded", True, pad_token_id=1), pretrained=trained) < 2.0
    with pytest.raises(InvalidSettingError, match=r"tokenizer of '.*without' has no token to pad with; expected"):
        update(make_decoder(tmp_path / "without", False), pretrained=trained)
    with pytest.raises(InvalidSettingError, match=r"configuration of .*half names no token to pad with"):
        update(make_decoder(tmp_path / "half", True), pretrained=trained)


def test_a_tokenizer_of_another_model_is_named(hub, tmp_path):
    with pytest.raises(InvalidSettingError, match=r"gives tokens up to number \d+ and its model knows 60"):
        update(make_decoder(tmp_path / "small", True, pad_token_id=1, vocab_size=60))


def test_a_folder_outside_the_data_root_is_named_by_its_path(hub, tmp_path):
    with pytest.raises(DataNotFoundError, match=f"No tokenizer for '{tmp_path}'"):
        pretrained.load_tokenizer(pretrained.locate(str(tmp_path)))
