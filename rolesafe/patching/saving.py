"""What a patched model's own methods save and load: all of it, or nothing."""

from __future__ import annotations

from typing import Any

from rolesafe.mechanisms import get_strength

ADAPTERS = (
    "add_adapter, load_adapter: expected adapters through PEFT itself: peft.get_peft_model(model, config), "
    "PeftModel.from_pretrained(model, path). Transformers' own way saves them without their role layer"
)


class SavesWhole:
    """Mixed into the class of a patched model, in front of its base class."""

    config: Any

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Save as the base model does, with digests of its files; only `rolesafe.from_pretrained` loads it.

        Raises:
            ValueError: The folder holds another checkpoint, or the model could not be loaded again.
        """
        from rolesafe.patching.checkpoint import after_saving, before_saving

        kwargs = before_saving(self, save_directory, kwargs)
        self.config.rolesafe_strength = get_strength(self)
        try:
            super().save_pretrained(save_directory, **kwargs)  # type: ignore[misc]
        finally:
            del self.config.rolesafe_strength
        if kwargs.get("is_main_process", True):
            after_saving(self, save_directory, kwargs)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Refuse: the role layer would come from nowhere."""
        raise TypeError(
            f"{cls.__name__}.from_pretrained: expected rolesafe.from_pretrained(path), which loads the role layer too"
        )

    def add_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: `save_pretrained` would save the adapters alone, and a plain base would take them."""
        raise RuntimeError(ADAPTERS)

    load_adapter = add_adapter
