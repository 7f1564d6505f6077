"""garak: the probe `test.Test` with its generator for OpenAI-compatible servers."""

import json
import os
import subprocess
import sys

options = {
    "openai": {
        "OpenAICompatible": {"uri": os.environ["CLIENTS_URL"], "api_key": "none", "max_tokens": 16, "stop": ["#"]}
    }
}
arguments = ["--target_type", "openai.OpenAICompatible", "--target_name", os.environ["CLIENTS_MODEL"]]
arguments += ["--generator_options", json.dumps(options), "--probes", "test.Test", "--generations", "1"]
environment = os.environ | {"OPENAICOMPATIBLE_API_KEY": "none"}
sys.exit(subprocess.run([sys.executable, "-m", "garak", *arguments], env=environment).returncode)
