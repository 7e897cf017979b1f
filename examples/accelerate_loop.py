"""Train a digit classifier with Accelerate, accumulating gradients, from a bad initial rate.

python examples/accelerate_loop.py POLICY          (folder or Hub id; without one, the bundled policy)
accelerate launch examples/accelerate_loop.py      (several processes)
"""

import sys

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from gns import GNSScheduler

EPOCHS, PARTS = 6, 2


def main(policy: str | None) -> None:
    """Train, and print the rates that were chosen and the accuracy."""
    torch.manual_seed(0)
    digits = load_digits()
    data = TensorDataset(torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target))
    train, held_out = random_split(data, [1400, len(data) - 1400])

    accelerator = Accelerator(gradient_accumulation_steps=PARTS)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)  # a hundred times too low
    loader = DataLoader(train, batch_size=16, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    updates = EPOCHS * -(-len(loader) // PARTS)  # an epoch's last update may have fewer parts
    gns = GNSScheduler(optimizer, model, total_steps=updates, policy=policy)
    scheduler = accelerator.prepare(gns)

    for _ in range(EPOCHS):
        for inputs, targets in loader:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(inputs), targets)
                gns.report_loss(loss)  # of every part; scheduler.step() has their mean
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()

    for record in gns.history:
        accelerator.print(
            f"update {record.update:4d}  rate {record.learning_rate:.2e}  multiplier {record.multiplier:.2f}"
        )
    inputs, targets = (tensor.to(accelerator.device) for tensor in held_out.dataset[held_out.indices])
    accuracy = (model(inputs).argmax(1) == targets).float().mean().item()
    accelerator.print(f"accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
