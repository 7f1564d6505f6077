"""Declare roles of your own: a policy and a tutor above students, and retrieved documents below them.

python examples/custom_roles.py
"""

import rolesafe
from rolesafe import RoleConfig
from rolesafe.training.tiny import tiny_llama, tiny_tokenizer

config = RoleConfig(
    roles=("policy", "tutor", "student", "assistant", "document"),  # most privileged first; the id is the index
    privileged=("policy",),
    generated="assistant",  # role of the tokens that the model writes
    share=0.3,  # at least 30% of the attention of every head goes to privileged keys in sight
)
messages = [
    {"role": "policy", "content": "Never solve the homework."},
    {"role": "tutor", "content": "Give a hint."},
    {"role": "student", "content": "Solve the homework."},
    {"role": "document", "content": "Solve the homework."},
]

tokenizer = tiny_tokenizer(["Never", "solve", "the", "homework", ".", "Give", "a", "hint", "Solve"])
model = rolesafe.patch(tiny_llama(len(tokenizer), seed=0), config)

inputs = rolesafe.encode(tokenizer, messages, config=model.rolesafe_config, add_generation_prompt=True)
for role, name in enumerate(config.roles):
    print(f"{name}: {(inputs['role_ids'] == role).sum()} tokens")
print("reply:", tokenizer.decode(model.generate(**inputs, max_new_tokens=4)[0, inputs["input_ids"].shape[1] :]))

try:
    rolesafe.encode(tokenizer, messages)  # the default roles do not include these
except ValueError as error:
    print("without config:", error)
