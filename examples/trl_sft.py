"""Fine-tune a role-aware model with TRL's SFTTrainer and a LoRA adapter that holds the role layer.

    python examples/trl_sft.py [STEPS]

Needs pip install "rolesafe[trl,peft]". STEPS: default 3, which shows the API and teaches nothing.
"""

import sys
import tempfile

from datasets import Dataset
from trl import SFTConfig

import rolesafe
from rolesafe import RoleConfig
from rolesafe.integrations.peft import load_adapter, role_lora_config
from rolesafe.integrations.trl import RoleSFTTrainer
from rolesafe.tasks import training_conversations, vocabulary
from rolesafe.training import LogRoles
from rolesafe.training.tiny import tiny_llama, tiny_tokenizer

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 3
tokenizer = tiny_tokenizer(vocabulary())
model = rolesafe.patch(tiny_llama(len(tokenizer), seed=0), RoleConfig.preset("channel"))
rows = Dataset.from_list([{"messages": messages} for messages in training_conversations(32, seed=0)])

with tempfile.TemporaryDirectory() as directory:
    model.save_pretrained(f"{directory}/base")
    base = rolesafe.from_pretrained(f"{directory}/base")  # the adapter names this folder
    trainer = RoleSFTTrainer(
        base,
        SFTConfig(
            f"{directory}/run",
            max_steps=steps,
            per_device_train_batch_size=2,
            packing=True,
            max_length=256,
            assistant_only_loss=True,
            logging_steps=1,
            report_to=[],
            disable_tqdm=True,
            bf16=False,
        ),
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=role_lora_config(base, r=4, target_modules="all-linear"),
        role_learning_rate=1e-2,
        callbacks=[LogRoles()],
    )
    trainer.train()
    trainer.save_model(f"{directory}/adapter")
    loaded = load_adapter(f"{directory}/adapter")

inputs = rolesafe.encode(tokenizer, rows[0]["messages"][:-1], add_generation_prompt=True)
same = loaded.eval()(**inputs).logits.equal(trainer.model.eval()(**inputs).logits)
print("mean reserved share:", round(trainer.state.log_history[0]["role/share_mean"], 2))
print("loaded adapter computes the same logits:", same)
