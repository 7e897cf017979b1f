"""Fine-tune an encoder on MRPC: python examples/mrpc_trainer.py --output_dir outputs/mrpc --learning_rate 1e-3."""

import os

import torch
from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, HfArgumentParser, TrainingArguments

from gns import GNSScheduler
from gns.integrations.transformers import GNSTrainer, training_updates

parser = HfArgumentParser(TrainingArguments, description=__doc__)
parser.add_argument("--model", default="FacebookAI/roberta-base")
parser.add_argument("--data", default="nyu-mll/glue")
parser.add_argument("--policy", help="folder or Hub id; by default the one that comes with gns")
args, more = parser.parse_args_into_dataclasses()

root = os.environ.get("GNS_DATA_ROOT", "")  # a folder of models and data sets by Hub id, which is tried first
model, data = (path if os.path.isdir(path := os.path.join(root, id)) else id for id in (more.model, more.data))
tokenizer = AutoTokenizer.from_pretrained(model)
data = load_dataset(data, "mrpc")
data = data.map(lambda rows: tokenizer(rows["sentence1"], rows["sentence2"], truncation=True), batched=True)
model = AutoModelForSequenceClassification.from_pretrained(model, num_labels=2)

optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=args.weight_decay)
updates = training_updates(args, len(data["train"]))
# From 1e-3 the bundled policy goes below 1e-4 before the first update; from 1e-5 it hardly goes up.
scheduler = GNSScheduler(optimizer, model, total_steps=updates, policy=more.policy, max_lr=1e-3)
trainer = GNSTrainer(
    model=model,
    args=args,
    train_dataset=data["train"],
    eval_dataset=data["validation"],
    processing_class=tokenizer,
    optimizers=(optimizer, scheduler),
    compute_metrics=lambda result: {"accuracy": (result.predictions.argmax(-1) == result.label_ids).mean()},
)
trainer.train()
print(trainer.evaluate())
