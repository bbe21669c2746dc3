"""Why a process has ended, by what is told of it."""

import pytest

from corral.core.lifecycle import died_for_memory


@pytest.mark.parametrize(
    "why",
    [
        "llama-server was killed by SIGKILL before it was ready; its last lines:",
        "ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 8589934592",
        "allocating 7000.00 MiB on device 0: cudaMalloc failed: out of memory",
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "mmap failed: Cannot allocate memory",
        "llama_kv_cache_init: unable to allocate KV cache",
    ],
)
def test_a_process_that_wanted_more_memory_than_there_is_is_known(why: str) -> None:
    assert died_for_memory(why)


@pytest.mark.parametrize(
    "why",
    [
        "llama-server exited with status 1 before it was ready; its last lines:\nerror: unknown argument: --bogus",
        "llama-server was killed by SIGSEGV",
        "llama-server was not ready within 600 s",
        "",
    ],
)
def test_other_ends_are_no_matter_of_memory(why: str) -> None:
    assert not died_for_memory(why)
