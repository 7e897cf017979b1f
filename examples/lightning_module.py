"""Train a digit classifier in PyTorch Lightning from a bad initial rate, with a policy for a schedule.

python examples/lightning_module.py POLICY          (folder or Hub id; without one, the bundled policy)
"""

import sys

import pytorch_lightning as pl  # or: import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from gns import GNSScheduler


class Digits(pl.LightningModule):
    """A classifier whose scheduler stands where any other would."""

    def __init__(self, policy: str | None) -> None:
        super().__init__()
        self.policy = policy
        self.network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch, batch_idx):
        """Return the loss of a batch."""
        inputs, targets = batch
        return nn.functional.cross_entropy(self.network(inputs), targets)

    def validation_step(self, batch, batch_idx):
        """Log the accuracy."""
        inputs, targets = batch
        self.log("accuracy", (self.network(inputs).argmax(1) == targets).float().mean())

    def configure_optimizers(self):
        """Give the scheduler the module itself, and have it stepped every update."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-5)  # a hundred times too low
        steps = self.trainer.estimated_stepping_batches
        self.scheduler = GNSScheduler(optimizer, self, total_steps=steps, policy=self.policy)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler, "interval": "step"}}


def main(policy: str | None) -> None:
    """Train, and print the rates that were chosen and the accuracy."""
    pl.seed_everything(0, verbose=False)
    digits = load_digits()
    data = TensorDataset(torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target))
    train, held_out = random_split(data, [1400, len(data) - 1400])
    module = Digits(policy)
    quiet = {"logger": False, "enable_checkpointing": False}
    trainer = pl.Trainer(max_epochs=5, accelerator="cpu", gradient_clip_val=1.0, **quiet)
    trainer.fit(module, DataLoader(train, batch_size=32, shuffle=True), DataLoader(held_out, batch_size=512))

    for record in module.scheduler.history:
        print(f"update {record.update:4d}  rate {record.learning_rate:.2e}  multiplier {record.multiplier:.2f}")
    print(f"accuracy {trainer.callback_metrics['accuracy']:.3f}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
