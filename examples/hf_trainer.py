"""Train a small vision transformer on scikit-learn's digits with the Trainer of transformers and a learned schedule.

python examples/hf_trainer.py                    (no download; --policy takes a folder or Hub id)
"""

from argparse import ArgumentParser
from tempfile import TemporaryDirectory

import torch
from sklearn.datasets import load_digits
from transformers import TrainingArguments, ViTConfig, ViTForImageClassification

from gns import GNSScheduler
from gns.integrations.transformers import GNSTrainer, training_updates


def main(policy: str | None, folder: str) -> None:
    """Train from a rate a hundred times too low; print the decisions and the accuracy."""
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
    examples = [{"pixel_values": x, "labels": y} for x, y in zip(images, digits.target.tolist(), strict=True)]
    order = torch.randperm(len(examples)).tolist()
    train, held_out = ([examples[row] for row in rows] for rows in (order[:1400], order[1400:]))

    config = ViTConfig(image_size=8, patch_size=2, num_channels=1, num_labels=10, hidden_size=32)
    config.update({"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64})
    model = ViTForImageClassification(config)
    args = TrainingArguments(folder, num_train_epochs=8, per_device_train_batch_size=32, report_to="none", use_cpu=True)

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    scheduler = GNSScheduler(optimizer, model, total_steps=training_updates(args, len(train)), policy=policy)
    trainer = GNSTrainer(
        model,
        args,
        train_dataset=train,
        eval_dataset=held_out,
        optimizers=(optimizer, scheduler),
        compute_metrics=lambda result: {"accuracy": (result.predictions.argmax(-1) == result.label_ids).mean()},
    )
    trainer.train()
    for record in scheduler.history:
        print(f"update {record.update:4d}  rate {record.learning_rate:.2e}  multiplier {record.multiplier:.2f}")
    print(f"accuracy {trainer.evaluate()['eval_accuracy']:.3f}")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--policy", help="folder or Hub id; by default the policy that comes with gns")
    with TemporaryDirectory() as outputs:
        main(parser.parse_args().policy, outputs)
