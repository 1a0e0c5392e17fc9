"""Stands in for Habana's PyTorch plugin on the simulated Gaudi (tests/gaudi_sim); it drives no card."""

import os


def load_with_torch() -> None:
    """What `import torch` calls (entry point `torch.backends`): in eager mode the plugin loads with PyTorch."""
    if os.environ.get("PT_HPU_LAZY_MODE", "0") != "1":
        import habana_frameworks.torch  # noqa: F401
