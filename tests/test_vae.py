"""The variational autoencoder: its loss, its random numbers and its figures."""

import math

import pytest
import torch
from conformance import conformance_task

from envs import TrainingRun
from envs.passes import evaluate_split
from envs.tasks import Split, get_task
from envs.tasks.report import load_test_split
from envs.tasks.vae import VAE, VAEOutputs, elbo_loss, join_outputs, kl_nats, prepare_pixels, reconstruction_nats


def small_vae(seed: int = 0) -> VAE:
    torch.manual_seed(seed)
    return VAE(pixels=12, hidden=[8, 5], latent=2)


def some_images(count: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 1, 3, 4), dtype=torch.uint8, generator=generator)


def some_outputs(count: int = 6) -> VAEOutputs:
    generator = torch.Generator().manual_seed(2)
    return VAEOutputs(*(torch.randn(count, width, generator=generator) for width in (12, 2, 2)))


# ---------------------------------------------------------------------- network


def test_the_network_is_784_512_256_2_and_back():
    model = get_task("mnist_vae").new_model()
    assert [tuple(p.shape) for p in model.parameters() if p.ndim == 2] == [
        (512, 784),
        (256, 512),
        (2, 256),
        (2, 256),
        (256, 2),
        (512, 256),
        (784, 512),
    ]
    assert sum(p.numel() for p in model.parameters()) == 1_068_820


def test_outputs_have_the_shapes_that_are_documented():
    outputs = small_vae()(prepare_pixels(some_images(), True))
    assert (outputs.logits.shape, outputs.mean.shape, outputs.log_variance.shape) == ((6, 12), (6, 2), (6, 2))
    assert join_outputs(outputs).shape == (6, 16)


def test_pixels_are_scaled_to_between_0_and_1():
    x = prepare_pixels(torch.tensor([[[[0, 51, 255]]]], dtype=torch.uint8), True)
    torch.testing.assert_close(x, torch.tensor([[[[0.0, 0.2, 1.0]]]]))


def test_latent_numbers_are_mean_plus_deviation_times_noise():
    model, x = small_vae().train(), prepare_pixels(some_images(), True)
    torch.manual_seed(7)
    outputs = model(x)
    torch.manual_seed(7)
    noise = torch.randn(6, 2)
    latent = outputs.mean + torch.sqrt(torch.exp(outputs.log_variance)) * noise
    torch.testing.assert_close(outputs.logits, model.decoder(latent))


# ---------------------------------------------------------------------- random numbers


def test_training_draws_from_torchs_global_random_numbers():
    model, x = small_vae().train(), prepare_pixels(some_images(), True)
    torch.manual_seed(3)
    first, second = model(x).logits, model(x).logits
    torch.manual_seed(3)
    assert torch.equal(model(x).logits, first) and not torch.equal(first, second)


def test_evaluation_is_deterministic_and_draws_no_global_random_number():
    model, x = small_vae().eval(), prepare_pixels(some_images(), False)
    state = torch.get_rng_state()
    first = model(x)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert all(torch.equal(a, b) for a, b in zip(first, model(x), strict=True))
    assert not torch.equal(first.logits, model.decoder(first.mean))  # there is noise


def test_a_run_evaluates_alike_twice_and_in_whatever_mode():
    run = TrainingRun(conformance_task("mnist_vae"), "adam", 1e-3, seed=0)
    assert run.evaluate_reward_split() == run.evaluate_reward_split()
    assert run.model.training


# ---------------------------------------------------------------------- loss


def test_reconstruction_equals_its_formula():
    outputs, images = some_outputs(), some_images()
    for i in range(6):
        expected = 0.0
        for logit, pixel in zip(outputs.logits[i].tolist(), images[i].flatten().tolist(), strict=True):
            p, x = 1 / (1 + math.exp(-logit)), pixel / 255
            expected -= x * math.log(p) + (1 - x) * math.log(1 - p)
        assert float(reconstruction_nats(outputs, images)[i]) == pytest.approx(expected, rel=1e-5)


def test_divergence_equals_torchs():
    outputs = some_outputs()
    posterior = torch.distributions.Normal(outputs.mean, (0.5 * outputs.log_variance).exp())
    prior = torch.distributions.Normal(0.0, 1.0)
    torch.testing.assert_close(kl_nats(outputs), torch.distributions.kl_divergence(posterior, prior).sum(1))


def test_divergence_is_0_where_the_posterior_is_the_prior():
    outputs = VAEOutputs(torch.zeros(3, 12), torch.zeros(3, 2), torch.zeros(3, 2))
    assert torch.equal(kl_nats(outputs), torch.zeros(3))


def test_loss_is_the_mean_of_both_over_images():
    outputs, images = some_outputs(), some_images()
    expected = (reconstruction_nats(outputs, images) + kl_nats(outputs)).mean()
    torch.testing.assert_close(elbo_loss(outputs, images), expected)


# ---------------------------------------------------------------------- task


@pytest.mark.parametrize("part", ["train", "reward", "test"])
def test_images_are_their_own_targets(part, hub):
    task = conformance_task("mnist_vae")
    split = load_test_split(task) if part == "test" else getattr(task.training_data(), part)
    assert split.targets is split.inputs and split.inputs.dtype == torch.uint8
    assert split.to("cpu").targets is split.to("cpu").inputs or split.to("cpu").targets is split.targets


def test_images_are_shared_in_memory_with_the_classification_task(hub):
    ours, theirs = (get_task(name).training_data() for name in ("mnist_vae", "mnist_lenet"))
    assert ours.train.inputs is theirs.train.inputs and ours.reward.inputs is theirs.reward.inputs


def test_metrics_are_the_loss_and_its_two_parts():
    task = get_task("mnist_vae")
    assert list(task.metrics) == ["elbo_loss", "reconstruction", "kl"] and not task.higher_is_better
    outputs, images = some_outputs(), some_images()
    split = Split(images, images)
    found = {name: metric(task.collect(outputs), split) for name, metric in task.metrics.items()}
    assert found["elbo_loss"] == pytest.approx(float(elbo_loss(outputs, images)))
    assert found["reconstruction"] == pytest.approx(float(reconstruction_nats(outputs, images).mean()))
    assert found["kl"] == pytest.approx(float(kl_nats(outputs).mean()))
    assert found["elbo_loss"] == pytest.approx(found["reconstruction"] + found["kl"])


def test_metrics_do_not_depend_on_how_a_split_is_cut_but_for_the_noise(hub):
    task = conformance_task("mnist_vae")
    split = task.training_data().reward
    torch.manual_seed(0)
    model = task.new_model()
    whole, pieces = (evaluate_split(model, task, split, chunk) for chunk in (None, 50))
    assert whole.loss == pytest.approx(whole.metric, rel=1e-5)
    assert pieces.loss == pytest.approx(pieces.metric, rel=1e-5)
    assert whole.metrics["kl"] == pytest.approx(pieces.metrics["kl"], rel=1e-5)
    assert whole.metrics["reconstruction"] == pytest.approx(pieces.metrics["reconstruction"], rel=1e-2)


def test_training_lowers_the_loss_in_bfloat16_too(hub):
    for precision in ("float32", "bfloat16"):
        run = TrainingRun(get_task("mnist_vae", precision=precision, batch_size=50), "adam", 1e-3, seed=0)
        before = run.evaluate_reward_split().loss
        for _ in range(20):
            run.compute_gradient()
            run.apply_update()
        after = run.evaluate_reward_split()
        assert after.loss < before - 20 and after.metrics["kl"] > 0
