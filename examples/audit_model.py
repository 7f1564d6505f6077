"""Audit a model from Python and print one verdict per claim.

    python examples/audit_model.py [MODEL]

MODEL: a checkpoint with a role layer. Default: a tiny untrained one, whose resistance is not judged.
`rolesafe audit MODEL` does the same on the command line, for any causal language model.
`report.save(path)` writes the whole report as JSON.
"""

import sys

import rolesafe
from rolesafe import RoleConfig
from rolesafe.audit import AuditSettings, audit
from rolesafe.tasks import vocabulary
from rolesafe.training.tiny import tiny_llama, tiny_tokenizer

if len(sys.argv) > 1:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
    model = rolesafe.from_pretrained(sys.argv[1])
    settings = AuditSettings()
else:
    tokenizer = tiny_tokenizer(vocabulary())
    model = rolesafe.patch(tiny_llama(len(tokenizer), seed=0), RoleConfig.preset("channel")).eval()
    settings = AuditSettings(examples=4, repeats=(1, 2), attacks=("ignore-previous",), looks=2, forging=100)

report = audit(model, tokenizer, settings=settings)
for verdict in report.verdicts:
    print(f"{verdict.claim}: {verdict.text}")
