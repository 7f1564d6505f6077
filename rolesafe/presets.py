"""Presets of `RoleConfig`: single parts, published mechanisms, and the recommended combinations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named configuration, with its cost, guarantee and source.

    Attributes:
        values: Arguments of `RoleConfig` that differ from its defaults.
        adds: Changes to the model.
        parameters: Number of learned scalars, a formula in L (layers), d (hidden size), H (heads), R (roles).
        guarantee: Property that holds for all weights and all texts; "none" where there is none.
        trained: True if the model has to be trained with it.
        paper: Publication; None where none is known.
    """

    values: dict[str, Any]
    adds: str
    parameters: str
    guarantee: str
    trained: bool
    paper: str | None = None


PRESETS: dict[str, Preset] = {
    "bias": Preset(
        values={},
        adds="a learned bias per layer, head and pair of roles in the attention scores",
        parameters="L*H*R*R",
        guarantee="none: n competing keys beat a bias b once n > e^b",
        trained=True,
    ),
    "dedicated": Preset(
        values={"bias": False, "dedicated_heads": 0.5},
        adds="half of the heads see privileged keys only",
        parameters="0",
        guarantee="these heads never see an unprivileged key",
        trained=True,
    ),
    "added": Preset(
        values={"bias": False, "added_heads": 0.25},
        adds="a quarter more heads, copies of others, that look at privileged keys only",
        parameters="L*4*d*d/4",
        guarantee="these heads never look at an unprivileged key",
        trained=True,
    ),
    "share": Preset(
        values={"bias": False, "share": 0.5},
        adds="a learned reserved share of every head's attention for privileged keys, 0.5 initially",
        parameters="L*H",
        guarantee="attention mass on visible privileged keys is at least the share, however long other text is",
        trained=True,
    ),
    "integrity": Preset(
        values={"bias": False, "integrity": True},
        adds="privileged queries see privileged keys only",
        parameters="0",
        guarantee="edits of other text in place do not change the privileged tokens' states",
        trained=True,
        paper="CIV, Gupta 2025, arXiv 2508.09288 (hard mask over levels of trust, no training, signed provenance)",
    ),
    "embedding": Preset(
        values={"bias": False, "embedding": "layers"},
        adds="a learned vector per role before every layer",
        parameters="L*R*d",
        guarantee="none",
        trained=True,
    ),
    "ise": Preset(
        values={"bias": False, "embedding": "input"},
        adds="a learned vector per role at the input",
        parameters="R*d",
        guarantee="none",
        trained=True,
        paper="ISE, Wu et al. 2024, arXiv 2410.09102",
    ),
    "air": Preset(
        values={"bias": False, "embedding": "all"},
        adds="a learned vector per role before every layer and after the last",
        parameters="(L+1)*R*d",
        guarantee="none",
        trained=True,
        paper="AIR, 2025, arXiv 2505.18907",
    ),
    "aside": Preset(
        values={"bias": False, "rotation": math.pi / 2},
        adds="embeddings of data tokens are rotated by 90 degrees",
        parameters="0",
        guarantee="none",
        trained=True,
        paper="ASIDE, Zverev et al. 2025, arXiv 2503.10566",
    ),
    "pft": Preset(
        values={"bias": False, "position_gap": 512},
        adds="all other tokens are moved by 512 positions",
        parameters="0",
        guarantee="none",
        trained=True,
        paper="PFT, 2025, arXiv 2505.00626",
    ),
    "drip": Preset(
        values={"bias": False, "shift": True},
        adds="a learned linear shift of the embeddings of data tokens (the token-wise half of DRIP)",
        parameters="d*d + d",
        guarantee="none",
        trained=True,
        paper="DRIP, Liu et al. 2025, arXiv 2511.00447, github.com/lindsey98/DRIP",
    ),
    "instaboost": Preset(
        values={"bias": False, "boost": 2.0},
        adds="attention to privileged keys times 2, renormalised (published: 1 to 19, tuned per model and task; "
        "from 5 on a chat model of 135 M parameters repeats itself: docs/steering.md)",
        parameters="0",
        guarantee="none",
        trained=False,
        paper="InstABoost, Guardieiro et al. 2025, arXiv 2506.13734",
    ),
    "pasta": Preset(
        values={"bias": False, "dampen": 0.5},
        adds="attention to other keys times 0.5 in all heads, renormalised: the same as instaboost (published: 0.01 "
        "on heads that are profiled; in all heads it breaks a chat model of 135 M parameters: docs/steering.md)",
        parameters="0",
        guarantee="none",
        trained=False,
        paper="PASTA, Zhang et al. 2023, arXiv 2311.02262",
    ),
    "spotlight": Preset(
        values={"bias": False, "mass_target": 0.2},
        adds="where a row's privileged mass m is below 0.2: log(0.2 / m) added to the privileged scores",
        parameters="0",
        guarantee="attention mass on visible privileged keys is at least 1/6 in every head (0.2 / (1 + 0.2))",
        trained=False,
        paper="SpotLight, Venkateswaran and Contractor 2025, arXiv 2505.12025",
    ),
    "channel": Preset(
        values={"embedding": "layers", "dedicated_heads": 0.5, "share": 0.5, "integrity": True},
        adds="role vectors before every layer, bias, half the heads dedicated, a share of 0.5 in the others, integrity",
        parameters="L*R*d + L*H*R*R + L*H",
        guarantee="those of dedicated, share and integrity together",
        trained=True,
    ),
    "pretrained": Preset(
        values={"bias": False, "embedding": "layers", "embedding_roles": ("tool",)},
        adds="a vector before every layer at the tokens of tool results, zero at the start",
        parameters="L*R*d",
        guarantee="a text without tool results is computed as without the vectors",
        trained=True,
    ),
    "separate": Preset(
        values={
            "embedding": "layers", "dedicated_heads": 0.5, "share": 0.5, "integrity": True, "own_positions": True,
        },
        adds="channel, and privileged tokens count their positions among themselves",
        parameters="L*R*d + L*H*R*R + L*H",
        guarantee="those of channel; place and length of other text do not change the privileged tokens' states",
        trained=True,
    ),
}  # fmt: skip
"""Presets of :meth:`rolesafe.RoleConfig.preset`, by name. Recommended: "channel" for models trained from nothing,
"pretrained" for existing checkpoints."""
