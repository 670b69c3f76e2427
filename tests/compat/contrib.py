"""Which of our checks answers to which of Optax's own contrib checks.

Names of test methods of `optax/contrib/_common_test.py` (read from the installed Optax, nothing is copied), with the columns of
the gauntlet, or the tests, that ask the same and more.
"""

COUNTERPARTS = {
    "test_optimizers_accept_extra_args": ("unknown extra arguments", "jit, one trace", "mechanize"),
    "test_optimizers": ("tree_map_params", "scan", "optimizes when cold", "schedule_free", "mechanize", "reduce_on_plateau"),
    "test_optimizers_can_be_wrapped_in_inject_hyperparams": (
        "inject_hyperparams: equal to plain",
        "inject_hyperparams: changed, no second trace",
    ),
    "test_preserve_dtype": ("bfloat16 and mixed trees", "gradients of another dtype", "x64"),
    "test_gradient_accumulation": (
        "MultiSteps: equal to one step if the value is",
        "accumulate: mean value, one draw",
        "skip_not_finite",
    ),
    "test_state_shape_dtype_shard_stability": ("cond: dtypes are a fixed point", "abstract init", "x64"),
    "test_optimizers_accept_learning_rate_schedule_if_type_annotated_as_such": ("learning-rate schedule",),
}
