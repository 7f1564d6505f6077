"""Loading of the base model and its tokenizer, with checks before training, and of retrained models."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rolesafe.files import read_json
from rolesafe.patching.base_model import is_gguf
from rolesafe.patching.checkpoint import read_config
from rolesafe.patching.loading import UNREADABLE, read_model, reading
from rolesafe.patching.seal import is_sealed
from rolesafe.retrain.card import STATE_NAME, with_choice
from rolesafe.retrain.config import RECIPE_NAME, RetrainConfig
from rolesafe.terminal import first_line

ADAPTER_NAME = "adapter_config.json"


def load_tokenizer(path: str) -> Any:
    """Load the tokenizer of a chat model and return it with a padding token.

    A tokenizer without a padding token pads with its end-of-sequence token, because padding is masked.

    Raises:
        ValueError: The tokenizer is missing, has no chat template, or neither a padding nor an end-of-sequence token.
    """
    from transformers import AutoTokenizer

    folder, options = _place(path)
    with _reading(path):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)
    if tokenizer.chat_template is None:
        raise ValueError(
            f"`model`: expected a tokenizer with a chat template in {path!r}, got none. Choose a chat model, or save "
            "a template with the tokenizer (tokenizer.chat_template = ...; tokenizer.save_pretrained(directory))."
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ValueError(
                f"`model`: expected a padding or end-of-sequence token in the tokenizer of {path!r}, got neither. Set "
                "tokenizer.pad_token and save it."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_base(config: RetrainConfig) -> dict[str, Any]:
    """Check the base model by its configuration alone, and return that configuration.

    Returns:
        Content of ``config.json``; empty for a GGUF file.

    Raises:
        ValueError: The model cannot be read, has a role layer or quantized weights, or a context shorter than
            `max_length`.
    """
    path = config.model
    if is_gguf(path):
        if not Path(path).is_file():
            raise ValueError(f"`model`: expected a GGUF file, got none at {path!r}. Check the path.")
        return {}
    with reading(path):
        about = read_config(path)
    if about is None:
        files = sorted(f.name for f in Path(path).glob("*.gguf")) if Path(path).is_dir() else []
        remedy = f" Give the file: {str(Path(path) / files[0])!r}." if files else " Give another path or hub id."
        raise ValueError(f"`model`: expected a checkpoint with config.json in {path!r}, got none.{remedy}")
    if is_sealed(about):
        raise ValueError(
            f"`model`: expected a model without a role layer, got {path!r}, which has one. Give its base model."
        )
    packed = about.get("quantization_config")
    if packed is not None:
        kind = packed.get("quant_method", "unknown") if isinstance(packed, dict) else packed
        raise ValueError(
            f"`model`: expected trainable weights, got quantized ones ({kind}) in {path!r}. Save a dequantized copy, "
            "or give the .gguf file itself, which is dequantized on loading."
        )
    _check_context(about, config)
    return dict(about)


def _check_context(about: Any, config: RetrainConfig) -> None:
    text = about.get("text_config") if isinstance(about.get("text_config"), dict) else about
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        context = text.get(name)
        if isinstance(context, int) and 0 < context < config.max_length:
            raise ValueError(
                f"`max_length`: expected at most {context}, the context of {config.model!r}, got {config.max_length}. "
                "Lower it."
            )


def load_base(config: RetrainConfig, dtype: Any) -> Any:
    """Load the base model on the CPU.

    Args:
        config: Recipe.
        dtype: Torch dtype of the weights.

    Raises:
        ValueError: The model cannot be read, or its weights are quantized.
    """
    if not is_gguf(config.model):
        model = read_model(config.model, dtype)
    else:
        from transformers import AutoModelForCausalLM, GgufConfig

        folder, options = _place(config.model)
        with _reading(config.model):
            model = AutoModelForCausalLM.from_pretrained(
                folder, **options, quantization_config=GgufConfig(dequantize=True), dtype=dtype, trust_remote_code=False
            )
            model.config.__dict__.pop("quantization_config", None)
            model.__dict__.pop("hf_quantizer", None)
            model.is_quantized = False
    if getattr(model, "hf_quantizer", None) is not None or getattr(model, "is_quantized", False):
        raise ValueError(
            f"`model`: expected trainable weights, got quantized ones in {config.model!r}. Save a dequantized copy."
        )
    about: Any = model.config
    _check_context(about.get_text_config().to_dict(), config)
    model.config.name_or_path = config.model
    return model


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Translate errors as `reading` does, including those of GGUF files."""
    try:
        with reading(path):
            yield
    except struct.error as error:
        raise ValueError(
            f"`model`: expected a whole GGUF file, got {path!r}: struct.error: {error}. Download the file again."
        ) from error


def _place(path: str) -> tuple[str, dict[str, Any]]:
    """Return the directory of a model, and the arguments that select a GGUF file in it."""
    if not is_gguf(path):
        return path, {}
    file = Path(path)
    return str(file.parent), {"gguf_file": file.name}


def is_adapter(path: str) -> bool:
    """Return True where the directory `path` contains an adapter of a retraining."""
    return (Path(path) / ADAPTER_NAME).is_file() and (Path(path) / RECIPE_NAME).is_file()


def load_retrained(path: str, dtype: str = "auto") -> tuple[Any, Any]:
    """Load a retrained model, full weights or an adapter, with its tokenizer.

    Other checkpoints, patched or plain, are supported too.

    Args:
        path: Directory that :func:`rolesafe.retrain.retrain` wrote, or hub id of a full model.
        dtype: ``"auto"`` (as saved) or the name of a torch dtype.

    Returns:
        The model in evaluation mode, and the tokenizer.

    Raises:
        ValueError: The model or its tokenizer cannot be read.
        ImportError: `path` is an adapter and `peft` is not installed.
    """
    from transformers import AutoTokenizer

    model: Any
    if is_adapter(path):
        from rolesafe.patching import patch

        recipe = RetrainConfig.load(Path(path) / RECIPE_NAME)
        peft = import_peft()
        model = load_base(recipe, dtype)
        roles = with_choice(recipe, read_json(Path(path) / STATE_NAME, "the state of a retraining"))
        if roles is not None:
            patch(model, roles)
        with reading(path):
            model = peft.PeftModel.from_pretrained(model, path).eval()
    else:
        model = read_model(path, dtype)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except UNREADABLE as error:
        base = getattr(model.config, "name_or_path", "")
        if not base or base == path:
            raise ValueError(
                f"`model`: expected a tokenizer in {path!r}, got none: {first_line(error)}. Save the tokenizer there."
            ) from error
        with reading(base):
            tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    return model, tokenizer


def load_chat_model(path: str, device: str | None = None, dtype: str = "auto", *, prefix: str = "") -> tuple[Any, Any]:
    """Load a model, patched or plain, in eval mode on a device, and its tokenizer with a chat template.

    Args:
        path: Directory or hub id.
        device: Such as "cpu" or "cuda"; None for a GPU where there is one.
        dtype: "auto" (as saved) or the name of a torch dtype.
        prefix: Put before the names of options in errors, such as ``"--"``.

    Raises:
        ValueError: The model or the chat template is missing, or an option is not usable.
    """
    import torch

    known = ("auto", "float32", "bfloat16", "float16")
    if dtype not in known:
        raise ValueError(f"`{prefix}dtype`: expected one of {known}, got {dtype!r}. Choose one.")
    model, tokenizer = load_retrained(path, dtype)
    if tokenizer.chat_template is None:
        raise ValueError(
            f"`model`: expected a tokenizer with a chat template in {path!r}, got none. Choose a chat model, or set "
            "tokenizer.chat_template and save it."
        )
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"`{prefix}device`: expected a usable device, got {device!r}: {first_line(error)}. Choose cpu."
        ) from error
    return model.eval(), tokenizer


def import_peft() -> Any:
    """Import `peft`.

    Raises:
        ImportError: `peft` is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise ImportError(
            '`lora`: expected the package peft, got none. Install it with pip install "rolesafe[peft]".'
        ) from error
    return peft


def add_lora(model: Any, rank: int) -> Any:
    """Return `model` with LoRA matrices in all linear layers; the role layer is trained and saved with them.

    Raises:
        ImportError: `peft` is not installed.
    """
    from rolesafe.integrations.peft import role_lora_config
    from rolesafe.patching import is_patched

    peft = import_peft()
    options: dict[str, Any] = {"r": rank, "lora_alpha": 2 * rank, "target_modules": "all-linear"}
    config = (
        role_lora_config(model, **options) if is_patched(model) else peft.LoraConfig(task_type="CAUSAL_LM", **options)
    )
    return peft.get_peft_model(model, config)
