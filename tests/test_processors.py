import pytest

from pipeline.processors import cpu_info, cpu_name, has_bf16, has_gpu, vector_flags

EPYC = "model name\t: AMD EPYC 9R14\nflags\t\t: fpu avx2 avx512_bf16 sse4_1 sse\nmodel name\t: AMD EPYC 9R14\n"
ARM = "Features\t: fp asimd sve bf16 crc32\n"


@pytest.mark.parametrize(
    ("info", "name", "flags", "bf16"),
    [
        (EPYC, "AMD EPYC 9R14", ("avx2", "avx512_bf16", "sse4_1"), True),
        (EPYC.replace("avx512_bf16", "amx_bf16"), "AMD EPYC 9R14", ("amx_bf16", "avx2", "sse4_1"), True),
        (EPYC.replace("avx512_bf16 ", ""), "AMD EPYC 9R14", ("avx2", "sse4_1"), False),
        (ARM, "unknown", ("asimd", "bf16", "sve"), False),
        ("", "unknown", (), False),
    ],
)
def test_a_processor_is_what_its_description_says(info, name, flags, bf16):
    assert (cpu_name(info), vector_flags(info), has_bf16(flags)) == (name, flags, bf16)


def test_a_system_without_a_description_has_no_special_instructions(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.processors.CPU_INFO", tmp_path / "none")
    assert cpu_info.__wrapped__() == ""


@pytest.mark.parametrize(
    ("visible", "devices", "found"),
    [(None, True, True), ("0", True, True), ("", True, False), ("-1", True, False), (None, False, False)],
)
def test_a_gpu_counts_when_it_is_there_and_not_hidden(monkeypatch, visible, devices, found):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("pathlib.Path.glob", lambda self, pattern: iter(["/dev/nvidia0"] if devices else []))
    assert has_gpu() is found
