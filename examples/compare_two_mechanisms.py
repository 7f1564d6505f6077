"""Train two mechanisms on the same conversations, attack both, and print utility and attack success.

    python examples/compare_two_mechanisms.py [PRESET PRESET [STEPS]]

Default: `ise channel 3`. Three steps show the API; about 1200 are needed to solve the tasks.
`python -m benchmarks.override_resistance` compares mechanisms with seeds, searches and intervals.
"""

import sys
import tempfile
from pathlib import Path

import rolesafe
from rolesafe import RoleConfig
from rolesafe.attacks import suite
from rolesafe.evaluation import resistance, utility
from rolesafe.tasks import generate, training_conversations, vocabulary
from rolesafe.training import FitSettings, fit
from rolesafe.training.tiny import tiny_llama, tiny_tokenizer

FAMILIES = ("access", "form", "data")
presets = sys.argv[1:3] or ["ise", "channel"]
steps = int(sys.argv[3]) if len(sys.argv) > 3 else 3

tokenizer = tiny_tokenizer(vocabulary(FAMILIES))
rows = [{"messages": messages} for messages in training_conversations(32 * steps, 0, FAMILIES)]
examples = generate("test", 6, seed=0, families=FAMILIES)
attacks = suite(["ignore-previous", "fake-system"], quick=True)

for name in presets:
    model = rolesafe.patch(tiny_llama(len(tokenizer), seed=0), RoleConfig.preset(name))
    with tempfile.TemporaryDirectory() as directory:
        fit(model, tokenizer, rows, FitSettings(steps=steps), seed=0, directory=Path(directory) / name)
    solved = utility(model, tokenizer, examples).benign
    print(f"{name}: benign tasks solved {solved.k} of {solved.n}")
    for result in resistance(model, tokenizer, examples, attacks).results:
        print(f"    {result.config.label}: attacker won {result.rate.k} of {result.rate.n}")
