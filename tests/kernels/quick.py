"""Triton's interpreter without work that it repeats: in a third of the time, with the same results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, lru_cache
from typing import Any

import triton.language as tl
from rolesafe_kernels.launch import INTERPRET
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter


def quicken() -> None:
    """Patch the interpreter, where kernels are interpreted and it has the parts that are known here.

    At every call of a function within a kernel it replaces the language's functions again, though the launch did; at
    every operation it writes a table of dtypes; and it computes whether sums and products of integers overflow, which
    nothing reads unless it debugs. For every value it makes the type of its block again and computes the shape of the
    type, and for every pair the shape that both are broadcast to, though they are equal. For every pair of one dtype it
    derives the dtype of the result from rules of promotion, and for every number it makes the block of it anew.
    """
    if not INTERPRET or not hasattr(interpreter, "_LangPatchScope") or hasattr(interpreter, "_quick"):
        return
    patch: Any = interpreter._patch_lang  # type: ignore[attr-defined]

    def patch_once(function: Any) -> Any:
        used = [value for value in function.__globals__.values() if value is tl or value is tl.core]
        if used and not any(tl.core.is_builtin(module.load) for module in used):
            return interpreter._LangPatchScope()  # type: ignore[attr-defined]
        return patch(function)

    interpreter._patch_lang = patch_once  # type: ignore[attr-defined]
    usual: Any = interpreter._get_np_dtype
    scalar = lru_cache(usual)
    interpreter._get_np_dtype = lambda dtype: scalar(dtype) if type(dtype) is tl.dtype else usual(dtype)
    builder: Any = interpreter.interpreter_builder
    if not builder.options.debug:
        builder.options = replace(builder.options, sanitize_overflow=False)
    tensors()
    calls()
    operands()
    interpreter._quick = True  # type: ignore[attr-defined]


def tensors() -> None:
    """Make the type of a block once, keep the shape of a tensor with it, and broadcast only what differs."""
    make, spread = tl.tensor.__init__, TritonSemantic.broadcast_impl_value

    def init(self: Any, handle: Any, type: Any) -> None:
        if (kept := vars(type).get("_kept")) is None:
            make(self, handle, type)
            type._kept = self.shape, self.numel
        else:
            self.handle, self.type, self.dtype = handle, type, type.scalar
            self.shape, self.numel = kept

    def broadcast(self: Any, one: Any, other: Any) -> Any:
        blocks = one.type.is_block(), other.type.is_block()
        if blocks == (False, False) or (blocks == (True, True) and shape(one.type) == shape(other.type)):
            return one, other
        return spread(self, one, other)

    def shape(type: Any) -> Any:
        return getattr(type.shape, "values", type.shape)

    make_block, known = tl.block_type.__init__, {}

    def init_block(self: Any, element_ty: Any, shape: Any) -> None:
        key = id(element_ty), tuple([getattr(size, "value", size) for size in shape])
        if (values := known.get(key)) is None:
            make_block(self, element_ty, shape)
            known[key] = vars(self)  # holds `element_ty`, so its id stays taken
        else:
            self.__dict__ = values

    tl.block_type.__init__ = init_block  # type: ignore[method-assign]
    tl.tensor.__init__ = init  # type: ignore[method-assign]
    TritonSemantic.broadcast_impl_value = broadcast  # type: ignore[method-assign]


def calls() -> None:
    """Call the language's functions without copying their arguments, and without asking whether they have semantics."""
    checked = tl.core.builtin(lambda: None).__code__
    unwrap: Any = tl.core._unwrap_if_constexpr

    @cache
    def interpreted(member: Any) -> Callable[..., Any]:
        function = member.__wrapped__ if getattr(member, "__code__", None) is checked else member

        def call(*args: Any, _semantic: Any = None, **options: Any) -> Any:
            return function(*args, _semantic=interpreter.interpreter_semantic, **options)

        return call

    def attach(target: Any, name: str, member: Any, _: Any, scope: Any) -> None:
        scope.set_attr(target, name, interpreted(member))

    def unwrapped(value: Any) -> Any:
        kind = type(value)
        if kind is tl.tensor or kind is int:
            return value
        return value.value if kind is tl.constexpr else unwrap(value)

    interpreter._patch_attr = attach  # type: ignore[attr-defined]
    tl.core._unwrap_if_constexpr = unwrapped


def operands() -> None:
    """Take two tensors of one dtype as they are, and make the block of an integer once for each shape and dtype."""
    check = TritonSemantic.binary_op_type_checking_impl
    known: dict[Any, Any] = {}

    def pair(self: Any, one: Any, other: Any, *rules: Any, **options: Any) -> Any:
        # a division has rules of its own (the fourth, or by name), and so have pointers
        if options or len(rules) > 3 or type(one) is not tl.tensor or type(one.dtype) is not tl.dtype:
            return check(self, one, other, *rules, **options)
        if type(other) is tl.tensor and other.dtype is one.dtype:
            return self.broadcast_impl_value(one, other)
        if type(other) is not int or len(rules) > 2:
            return check(self, one, other, *rules)
        key = other, one.dtype.name, one.type.is_block(), one.handle.data.shape
        if (kept := known.get(key)) is None:
            same, kept = check(self, one, other, *rules)
            if same is not one:  # of a larger dtype
                return same, kept
            kept.handle.data.flags.writeable = False
            known[key] = kept
        return one, kept

    TritonSemantic.binary_op_type_checking_impl = pair  # type: ignore[method-assign]
