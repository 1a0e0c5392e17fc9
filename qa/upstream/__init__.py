"""Workarounds for defects of PyTorch, transformers, accelerate and other libraries, in one place.

This module has those for a whole process, `training`, `models`, `gaudi` and `hub` the others.

Import this before anything that imports PyTorch. To see whether a workaround is still needed, remove it and run its test.
The tests whose names say `still` fail without that, as soon as a library is fixed.

| workaround | library | symptom without it | test |
|---|---|---|---|
| TORCH_DEVICE_BACKEND_AUTOLOAD | PyTorch 2.13 | loads Habana's plugin before its mode is set | test_preflight.py |
| skip_unused_libraries | transformers 4.55.4, optimum-habana 1.21.2 | imports libraries that no run uses | test_screen.py |
| RankDevice | accelerate 1.10.1 | calls the CPU of a rank `cpu:0`, where torch.load fails | test_ranks.py |
| use_store | PyTorch 2.13 | waits for ranks without a word, and listens on every address of the machine | test_ranks.py |
| STRAY_METRICS | optimum-habana 1.21.2 | a time of day among the metrics | test_the_library_still_writes_stray_metrics |
| EpochOrder | accelerate 1.10.1 | a run resumed in a later epoch takes the first one's batches | test_resume.py |
| ResumedEpochs | transformers 4.55.4 | a resumed epoch loses its last update | test_an_epoch_that_is_resumed_within_... |
| RestoredCallbacks | transformers 4.55.4 | a resumed run forgets its evaluations without progress | test_resume.py |
| FinishedTraining | transformers 4.55.4 | a finished run that resumes takes another step | test_resume.py |
| NoComparedShares | transformers 4.55.4 | a resumed run warns of a flag that is a share of the steps | test_resume.py |
| BestCheckpoint | transformers 4.55.4 | `--save_strategy best` saves the last model | test_save_strategy_best |
| WholeEvaluation | transformers 4.55.4, optimum-habana 1.21.2 | a finished training with DeepSpeed cannot be evaluated later | test_deepspeed.py |
| write_finite_states | transformers 4.55.4 | a NaN in trainer_state.json, which is no JSON | test_identity.py |
| GivenBatchSize | transformers 4.55.4 | a resumed run keeps its checkpoint's batch size, whatever the flag | test_identity.py |
| ReadableWeights | safetensors 0.8.0 | nobody except the owner can read model.safetensors | test_the_library_still_hides_weights |
| GaudiCorrections | optimum-habana 1.21.2 | accumulated gradients grow with the steps; ValueError for written answers in eager mode | test_the_corrections_are_still_needed, test_gaudi_flags.py |
| the same, `_maybe_log_save_evaluate` | optimum-habana 1.21.2 | no norm of the gradients in the log | test_gaudi_trainer.py |
| the same, `_wrap_model` | optimum-habana 1.21.2 | an evaluation of a compiled training is not compiled | test_readme.py |
| checkpoint_layers | optimum-habana 1.21.2 | `--gradient_checkpointing` fails in lazy mode and with DeepSpeed, or never ends | test_gradient_checkpointing... |
| support_albert_checkpointing | transformers 4.55.4 | ALBERT cannot checkpoint its layers | test_gradient_checkpointing_needs_... |
| trunk_mapping | transformers 4.55.4 | Llama for questions loads no tensor of a causal checkpoint | test_the_library_still_loses_causal_weights |
| changed_configurations | transformers 4.55.4 | a configuration runs code of the hub (CVE-2026-4372) | test_attention.py |
| own_generation_ignored | transformers 4.55.4 | a model's folder runs code for generation | test_attention.py |
| patch_attention | optimum-habana 1.21.2 | BERT and XLM-RoBERTa train without dropout of their attention | test_gaudi_flags.py |
| patch_bart | optimum-habana 1.21.2 | AttributeError `_shape` in BART's forward | test_bart_still_needs_its_patch |
| HubAdapter | huggingface_hub 0.36 | HTTP 429 or a broken download ends the run, a mute hub holds it forever | test_hub.py |
| choose_uploads | transformers 4.55.4 | uploads half-written checkpoints and paths of the machine; a failed upload is silent | test_push.py |
| exchange_through_gloo | DeepSpeed 0.19.8 | compiles for a minute before it trains on CPUs; ZeRO-3 loads no model there | test_deepspeed.py |
| place_one_rank | DeepSpeed 0.19.8 | a run without a launcher needs mpi4py | test_deepspeed.py |
| qa.workers.ServedWorkers | optimum-habana 1.21.2 | forks a process that holds a card: data loader workers hang | test_ranks.py |
| qa.copies.UnwaitedCopies | accelerate 1.10.1, optimum-habana 1.21.2 | waits for each copy of a batch, and for all steps before; the flag does nothing | test_gaudi_flags.py |
| let_threads_finish | PyTorch 2.13 | a finished rank ends with SIGABRT | test_ranks.py |

Workarounds of a line or two stay with the code that needs them, with the version in a comment: `git grep "1\\.21\\.2"`.
"""

import logging
import os
import sys
import time
import warnings
from types import ModuleType


# PyTorch would load Habana's plugin on import: before PT_HPU_LAZY_MODE is set, and with a traceback where it cannot.
# `qa.preflight.why_no_gaudi` loads it. So the scripts import nothing that imports PyTorch before this module.
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"

# All ranks have the same warnings, so rank 0 alone prints them. Every rank prints its errors.
IS_RANK_0 = os.environ.get("RANK", "0") == "0"

if not IS_RANK_0:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger().setLevel(logging.ERROR)
    warnings.simplefilter("ignore")

import torch  # noqa: E402


del os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"]  # other processes may want it

import accelerate.data_loader  # noqa: E402
import accelerate.utils.other  # noqa: E402
import torch.distributed.rendezvous  # noqa: E402
import transformers.utils.import_utils  # noqa: E402

from qa.upstream.hub import wait_for_the_hub  # noqa: E402


wait_for_the_hub()


def use_store(store: torch.distributed.Store) -> None:
    """Let PyTorch's process group use the store at which the ranks have met (`qa.meeting`), and make none itself."""
    # The module's name is also that of a function.
    sys.modules["torch.distributed.rendezvous"].TCPStore = lambda *args, **kwargs: store


def skip_unused_libraries() -> None:
    """Keep the libraries from importing others that no run of the scripts needs; call it before they import models.

    - transformers needs scikit-learn for assisted generation, SciPy for object detection, pandas for tables, and
      `datasets` to find out whether data is of its class. Rows are lists before a trainer sees them.
    - accelerate needs DeepSpeed to find out whether a model is its engine, which only an imported DeepSpeed can have made,
      and on several ranks `datasets` for the same question about data.
    - optimum-habana imports trainers of sentence-transformers, and with them all of the above.
    """
    for library in ("sklearn", "scipy", "datasets", "pandas"):
        setattr(transformers.utils.import_utils, f"_{library}_available", False)
    accelerate.utils.other.is_deepspeed_available = lambda: "deepspeed" in sys.modules
    accelerate.data_loader.is_datasets_available = lambda: "datasets" in sys.modules
    unused = sys.modules["optimum.habana.sentence_transformers"] = ModuleType("unused")
    unused.__getattr__ = lambda name: None


def exchange_through_gloo() -> None:
    """Let DeepSpeed's ranks on CPUs exchange tensors through gloo.

    DeepSpeed 0.19.8 compiles an exchange of its own in the first run: for a minute, and with a traceback where there is
    no compiler. With ZeRO-3 it counts one rank when a model is loaded, since accelerate 1.10.1 does not start it on CPUs.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if torch.distributed.is_initialized():
        deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)


def place_one_rank() -> None:
    """Make a process that nothing has started as a rank the only one of DeepSpeed's run.

    DeepSpeed 0.19.8 asks MPI for the place of such a process, through mpi4py.
    """
    place = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    if not place.keys() <= os.environ.keys():
        os.environ.update(place)
        use_store(torch.distributed.HashStore())  # no other rank comes, so nothing listens at the port


def let_threads_finish() -> None:
    """Give the threads of collectives and gradients the time to release their last tensors.

    A thread that does so while Python is being torn down aborts the process: a rank whose work was done would end with
    SIGABRT (https://github.com/pytorch/pytorch/issues/190489; seen with gloo). Destroying the process group is not
    enough, because DDP and DeepSpeed hold it and its threads live on.
    """
    time.sleep(0.5)  # they need milliseconds, and a core, which other ranks may have
