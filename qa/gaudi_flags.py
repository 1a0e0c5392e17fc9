"""Flags of optimum-habana that a run on a Gaudi cannot follow: those that are refused, and those without effect.

The library accepts them all, asserts some contradictions with a traceback, and ignores the others.
"""

from collections.abc import Callable

from accelerate.utils import is_fp8_available


FUSED = "--attn_implementation gaudi_fused_sdpa"
FOR_COMPILING = (
    "compile_dynamic compile_from_sec_iteration cache_size_limit use_regional_compilation inline_inbuilt_nn_modules "
    "allow_unspec_int_on_nn_module"
).split()
FOR_OTHERS = "use_zero3_leaf_promotion fp16_opt_level jit_mode_eval torch_empty_cache_steps".split()
FOR_GRAPHS = "max_hpu_graphs disable_tensor_cache_hpu_graphs".split()
FOR_PROFILING = "profiling_record_shapes profiling_with_stack".split()


def compiles(values) -> bool:
    return bool(values.torch_compile or values.torch_compile_backend or values.torch_compile_mode)


# For flags that count under a condition alone: the condition, and why they do not count without it.
CONDITIONS: dict[str, tuple[Callable, str]] = {
    **dict.fromkeys(FOR_COMPILING, (compiles, "needs --torch_compile")),
    "use_compiled_autograd": (lambda args: compiles(args) and args.deepspeed, "needs --torch_compile and --deepspeed"),
    **dict.fromkeys(
        FOR_GRAPHS, (lambda args: args.use_hpu_graphs_for_inference, "needs --use_hpu_graphs_for_inference")
    ),
    "pipelining_fwd_bwd": (lambda args: args.use_lazy_mode, "needs lazy mode"),
    "profiling_warmup_steps": (lambda args: args.profiling_steps, "needs --profiling_steps"),
    "profiling_warmup_steps_eval": (lambda args: args.profiling_steps_eval, "needs --profiling_steps_eval"),
    **dict.fromkeys(
        FOR_PROFILING,
        (
            lambda args: args.profiling_steps or args.profiling_steps_eval,
            "needs --profiling_steps or --profiling_steps_eval",
        ),
    ),
    "minimize_memory": (lambda args: args.fp8, "needs --fp8"),
    "distribution_strategy": (lambda args: args.world_size > 1, "needs several cards"),
    "ignore_eos": (lambda args: getattr(args, "predict_with_generate", False), "needs --predict_with_generate"),
    **dict.fromkeys(FOR_OTHERS, (lambda args: False, "optimum-habana's trainer does not read it")),
}


def gaudi_flag_problems(values) -> list[str]:
    """Return the flags of a run on a Gaudi that no model for question answering follows, one line each.

    Args:
        values: the values of all flags, as a namespace.
    """
    problems = [f"--{name}: no model for question answering reads it; omit it" for name in unread(values)]
    if values.attn_implementation != "gaudi_fused_sdpa":
        needing = ("flash_attention_recompute", "flash_attention_fast_softmax")
        problems += [f"--{name} needs {FUSED}; add that, or omit it" for name in needing if getattr(values, name)]
    if values.context_parallel_size > 1:
        problems.append(
            f"--context_parallel_size {values.context_parallel_size}: models for question answering read a window on one card; "
            "omit it"
        )
    if values.fp8 and not is_fp8_available():
        problems.append("--fp8 needs Intel's transformer engine, which is not installed; use --bf16")
    if values.half_precision_backend == "cpu_amp":
        problems.append("--half_precision_backend cpu_amp computes nothing on a Gaudi; use hpu_amp, or omit it")
    if values.use_cpu:
        problems.append("--use_cpu and --use_habana contradict each other; omit one of them")
    return problems


def unread(values) -> list[str]:
    return [name for name in ("flash_attention_causal_mask", "flash_attention_fp8") if getattr(values, name)]


def flags_without_effect(training_args, defaults: dict) -> list[str]:
    """Return flags that differ from their defaults and change nothing in this run, each with the reason.

    Args:
        defaults: by flag.
    """
    return [
        f"--{name} ({reason})"
        for name, (is_met, reason) in CONDITIONS.items()
        if getattr(training_args, name) != defaults[name] and not is_met(training_args)
    ]
