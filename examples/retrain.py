"""Train a role-aware model on conversations, save it, and load it again.

    python examples/retrain.py [STEPS]

STEPS: default 5, which shows the API and teaches nothing. `rolesafe demo` trains for real.
"""

import sys
import tempfile

from transformers import TrainingArguments

import rolesafe
from rolesafe import RoleConfig
from rolesafe.tasks import training_conversations, vocabulary
from rolesafe.training import AnnealRoles, RoleCollator, RoleTrainer
from rolesafe.training.tiny import tiny_llama, tiny_tokenizer

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 5
tokenizer = tiny_tokenizer(vocabulary())
model = rolesafe.patch(tiny_llama(len(tokenizer), seed=0), RoleConfig.preset("channel"))

role_layer = sum(parameter.numel() for _, parameter in rolesafe.named_role_parameters(model))
print(f"role parameters: {role_layer:,} of {model.num_parameters():,}")

rows = [{"messages": messages} for messages in training_conversations(16 * steps, seed=0)]
with tempfile.TemporaryDirectory() as directory:
    trainer = RoleTrainer(
        model,
        TrainingArguments(
            directory,
            max_steps=steps,
            per_device_train_batch_size=16,
            learning_rate=3e-3,
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=rows,
        data_collator=RoleCollator(tokenizer=tokenizer, config=model.rolesafe_config, position_gap=640),
        role_learning_rate=1e-2,
        callbacks=[AnnealRoles(0.5)],  # the role layer comes in over the first half of the steps
    )
    trainer.train()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    loaded = rolesafe.from_pretrained(directory)

inputs = rolesafe.encode(tokenizer, rows[0]["messages"][:-1], add_generation_prompt=True)
same = loaded(**inputs).logits.equal(model.eval()(**inputs).logits)
print("loaded model computes the same logits:", same)
