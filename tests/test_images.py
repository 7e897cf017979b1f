import io
import shutil
import tracemalloc

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from envs.tasks import get_task, image_models, images
from envs.tasks.hub import DataNotFoundError, decode_images, load_hub_dataset
from envs.tasks.report import load_test_split

# Network, settings, classes, parameters.
MODELS = [
    (image_models.lenet, {"channels": 1, "size": 28}, 10, 61_706),
    (image_models.net_2c2d, {"channels": 1, "size": 28}, 10, 3_274_634),
    (image_models.net_3c3d, {"channels": 3, "size": 32}, 10, 895_210),
    (image_models.resnet, {"channels": 3, "depth": 20}, 10, 269_722),
    (image_models.resnet, {"channels": 3, "depth": 38}, 10, 561_370),
    (image_models.resnet, {"channels": 3, "depth": 38}, 100, 567_220),
    (image_models.wide_resnet, {"channels": 3}, 10, 10_961_370),
    (image_models.vgg16, {"channels": 3}, 10, 14_728_266),
    (image_models.vgg16, {"channels": 3}, 100, 14_774_436),
]


@pytest.mark.parametrize(("build", "settings", "classes", "parameters"), MODELS)
def test_networks_have_their_published_numbers_of_parameters(build, settings, classes, parameters):
    model = build(classes=classes, **settings)
    assert sum(p.numel() for p in model.parameters()) == parameters
    size = settings.get("size", 32)
    assert model(torch.zeros(2, settings["channels"], size, size)).shape == (2, classes)


@pytest.mark.parametrize(
    ("name", "batch_size", "examples"),
    [("cifar100_vgg16", 128, 40_000), ("cifar100_resnet38", 128, 40_000), ("stl10_wrn16_8", 64, 4000)],
)
def test_budgets_are_ten_passes_over_the_published_training_split_less_the_reward_split(name, batch_size, examples):
    task = get_task(name)
    assert (task.batch_size, task.budget) == (batch_size, 10 * (examples // batch_size))


def test_residual_blocks_add_what_they_are_given():
    block = image_models._Residual(4, 8, stride=2).eval()
    with torch.no_grad():
        block.norm2.weight.zero_()
        block.norm2.bias.zero_()
        x = torch.rand(2, 4, 6, 6)
        out = block(x)
    assert torch.equal(out[:, :4], x[:, :, ::2, ::2]) and (out[:, 4:] == 0).all()


def test_images_are_decoded_as_they_were_encoded(hub):
    data = load_hub_dataset("uoft-cs/cifar10")["test"]
    pixels = decode_images(data.select_columns(["img"]))
    assert pixels.shape == (120, 3, 32, 32) and pixels.dtype == np.uint8
    np.testing.assert_array_equal(np.moveaxis(pixels[7], 0, -1), np.asarray(data[7]["img"]))


def test_images_are_decoded_in_the_order_asked_for(hub):
    column = load_hub_dataset("uoft-cs/cifar10")["test"].select_columns(["img"])
    order = np.random.default_rng(3).permutation(120)
    np.testing.assert_array_equal(decode_images(column, order), decode_images(column)[order])


def test_images_of_several_sizes_are_refused():
    encoded = []
    for side in (8, 8, 9):
        file = io.BytesIO()
        Image.fromarray(np.zeros((side, side), dtype=np.uint8)).save(file, format="PNG")
        encoded.append({"bytes": file.getvalue(), "path": None})
    column = datasets.Dataset.from_dict({"image": encoded}, datasets.Features({"image": datasets.Image()}))
    with pytest.raises(ValueError, match=r"Image 2 is \(1, 9, 9\); expected \(1, 8, 8\)"):
        decode_images(column)


def test_cifar100_is_labelled_with_its_fine_classes(hub):
    test = load_test_split("cifar100_vgg16")
    stored = load_hub_dataset("uoft-cs/cifar100")["test"]
    assert test.targets.tolist() == list(stored["fine_label"]) != list(stored["coarse_label"])
    assert int(get_task("cifar100_vgg16").training_data().train.targets.max()) == 99
    assert get_task("cifar100_resnet38").model["classes"] == 100


def test_stl10_images_keep_their_size(hub):
    task = get_task("stl10_wrn16_8", model={"depth": 10, "widen": 1})
    images_of_it = task.training_data().train.inputs
    assert images_of_it.shape == (400, 3, 96, 96)
    prepared = task.prepare(images_of_it[:4], True)
    assert prepared.shape == (4, 3, 96, 96) and task.new_model()(prepared).shape == (4, 10)


def test_splits_are_carved_from_the_training_split_by_a_fixed_seed(hub):
    task = get_task("fashion_mnist_2c2d")
    data, test = task.load_training_data(), load_test_split("fashion_mnist_2c2d")
    assert (len(data.train), len(data.reward), len(test)) == (480, 120, 120)
    whole = decode_images(load_hub_dataset(images.FASHION_MNIST.hub_id)["train"].select_columns(["image"]))
    carved = torch.cat([data.train.inputs, data.reward.inputs])
    assert sorted(map(bytes, carved.numpy().reshape(600, -1))) == sorted(map(bytes, whole.reshape(600, -1)))


def test_images_and_labels_are_shuffled_together(hub):
    stored = load_hub_dataset(images.CIFAR10.hub_id)["train"]
    whole = decode_images(stored.select_columns(["img"]))
    label_of = {pixels.tobytes(): label for pixels, label in zip(whole, stored["label"], strict=True)}
    data = get_task("cifar10_3c3d").training_data()
    for split in (data.train, data.reward):
        assert [label_of[pixels.tobytes()] for pixels in split.inputs.numpy()] == split.targets.tolist()


def test_a_whole_set_is_resident_once_at_a_byte_a_pixel(hub):
    images.load_training_data.cache_clear()
    tracemalloc.start()
    data = get_task("cifar10_3c3d").training_data()
    of_numpy = tracemalloc.take_snapshot().filter_traces([tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)])
    tracemalloc.stop()
    train, reward = data.train.inputs, data.reward.inputs
    assert train.dtype == torch.uint8 and train.is_contiguous() and reward.is_contiguous()
    pixels = train.numel() + reward.numel()
    assert train.untyped_storage().data_ptr() == reward.untyped_storage().data_ptr()
    assert train.untyped_storage().nbytes() == pixels
    held = sum(trace.size for trace in of_numpy.traces)
    assert pixels <= held < 1.1 * pixels  # labels are 8 bytes for 3,072 pixels


def test_tasks_on_one_data_set_share_it_in_memory(hub):
    one, other = (get_task(f"fashion_mnist_{model}").load_training_data() for model in ("2c2d", "lenet"))
    assert one.train.inputs is other.train.inputs


def test_preparation_normalises_and_leaves_evaluation_alone():
    pixels = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    x = images.prepare_images(images.CIFAR10, pixels, training=False)
    for channel, (mean, deviation) in enumerate(zip(images.CIFAR10.mean, images.CIFAR10.deviation, strict=True)):
        expected = (pixels[:, channel].float() / 255 - mean) / deviation
        torch.testing.assert_close(x[:, channel], expected)
    assert torch.equal(x, images.prepare_images(images.CIFAR10, pixels, training=False))
    assert not torch.equal(x, images.prepare_images(images.CIFAR10, pixels, training=True))
    gray = pixels[:, :1, :28, :28]  # no augmentation without padding
    plain, training = (images.prepare_images(images.FASHION_MNIST, gray, flag) for flag in (False, True))
    assert torch.equal(plain, training)


def test_crop_and_flip_equals_its_readable_twin():
    x, pad = torch.randn(40, 3, 9, 7), 2
    torch.manual_seed(5)
    fast = images.crop_and_flip(x, pad)
    torch.manual_seed(5)
    top, left = torch.randint(0, 2 * pad + 1, (2, 40, 1))
    mirrored = torch.rand(40, 1) < 0.5
    for i in range(40):
        padded = torch.zeros(3, 9 + 2 * pad, 7 + 2 * pad)
        padded[:, pad:-pad, pad:-pad] = x[i]
        crop = padded[:, top[i, 0] : top[i, 0] + 9, left[i, 0] : left[i, 0] + 7]
        assert torch.equal(fast[i], crop.flip(-1) if mirrored[i, 0] else crop)
    assert 5 < int(mirrored.sum()) < 35 and len(top.unique()) == 5


def test_data_that_are_nowhere_are_named_with_the_two_ways_out(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("GNS_DATA_ROOT", str(tmp_path))
    with pytest.raises(DataNotFoundError) as caught:
        load_hub_dataset("nobody/no-such-data")
    for words in ("'nobody/no-such-data'", "no folder $GNS_DATA_ROOT/nobody/no-such-data", "network"):
        assert words in str(caught.value)
    monkeypatch.delenv("GNS_DATA_ROOT")
    with pytest.raises(DataNotFoundError, match="GNS_DATA_ROOT is not set"):
        load_hub_dataset("nobody/no-such-data")


def test_a_damaged_folder_is_named(hub, tmp_path, monkeypatch):
    shutil.copytree(hub / "ylecun", tmp_path / "ylecun")
    file = tmp_path / "ylecun" / "mnist" / "data" / "train-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:1000])
    monkeypatch.setenv("GNS_DATA_ROOT", str(tmp_path))
    with pytest.raises(DataNotFoundError, match="ylecun/mnist"):
        load_hub_dataset("ylecun/mnist")
