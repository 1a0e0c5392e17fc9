"""Replacement of Habana's PyTorch plugin on the simulated Gaudi (tests/gaudi_sim); it drives no card."""

import os


def load_with_torch() -> None:
    """Load the plugin with PyTorch in eager mode: `import torch` calls this entry point of `torch.backends`."""
    if os.environ.get("PT_HPU_LAZY_MODE", "0") != "1":
        import habana_frameworks.torch  # noqa: F401
