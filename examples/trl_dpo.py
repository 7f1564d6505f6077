"""Prefer the reply that follows the system prompt, with TRL's DPOTrainer and a role-aware reference.

    python examples/trl_dpo.py [STEPS]

Needs pip install "rolesafe[trl]". STEPS: default 3, which shows the API and teaches nothing.
"""

import sys
import tempfile

from datasets import Dataset
from trl import DPOConfig

import rolesafe
from rolesafe import RoleConfig
from rolesafe.integrations.trl import RoleDPOTrainer
from rolesafe.tasks import training_conversations, vocabulary
from rolesafe.training.tiny import tiny_llama, tiny_tokenizer

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 3
tokenizer = tiny_tokenizer(vocabulary())
model = rolesafe.patch(tiny_llama(len(tokenizer), seed=0), RoleConfig.preset("channel"))

conversations = training_conversations(32, seed=0)
pairs = [
    # The rejected reply is that of another conversation.
    {"prompt": one[:-1], "chosen": one[-1:], "rejected": other[-1:]}
    for one, other in zip(conversations, conversations[1:] + conversations[:1], strict=True)
]
with tempfile.TemporaryDirectory() as directory:
    trainer = RoleDPOTrainer(
        model,
        args=DPOConfig(
            directory,
            max_steps=steps,
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            logging_steps=1,
            report_to=[],
            disable_tqdm=True,
            bf16=False,
            save_strategy="no",
        ),
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
        role_learning_rate=1e-2,
    )
    trainer.train()

print("reference has a role layer:", rolesafe.patching.is_patched(trainer.ref_model))
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
print("loss of the first step (log 2, model and reference are equal):", round(losses[0], 4))
