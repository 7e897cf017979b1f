"""Train a digit classifier from a bad initial rate, with a policy where CosineAnnealingLR stood.

python examples/plain_pytorch.py POLICY          (folder or Hub id; without one, the bundled policy)
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

from gns import GNSScheduler

UPDATES = 300


def main(policy: str | None) -> None:
    """Train, and print the rates that were chosen and the accuracy."""
    torch.manual_seed(0)
    digits = load_digits()
    inputs, targets = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    order = torch.randperm(len(inputs))
    train, held_out = order[:1400], order[1400:]

    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)  # a hundred times too low
    scheduler = GNSScheduler(optimizer, model, total_steps=UPDATES, policy=policy)

    for _ in range(UPDATES):
        batch = train[torch.randint(len(train), (32,))]
        loss = nn.functional.cross_entropy(model(inputs[batch]), targets[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step(loss)

    for record in scheduler.history:
        print(f"update {record.update:4d}  rate {record.learning_rate:.2e}  multiplier {record.multiplier:.2f}")
    accuracy = (model(inputs[held_out]).argmax(1) == targets[held_out]).float().mean().item()
    print(f"accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
